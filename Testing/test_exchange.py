"""exchange: volumes, choices and results through files, as they were and in small pieces."""

import os
from dataclasses import replace

import numpy as np
import pytest

from ASFEFusionLib import exchange
from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.settings import FusionReport, FusionSettings
from ASFEFusionLib.space import Displacement
from ASFEFusionLib.volume import Volume

POSIX = pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")


@pytest.fixture
def job(heads):
    return exchange.Job(heads["CT"], heads["MR"], FusionSettings())


def awkward(dtype):
    """Views of memory that is not in a row; int16 and RGB are of more than one piece, RGB in one slice."""
    rng = np.random.default_rng(3)
    if dtype == "rgb":
        return rng.integers(0, 255, (1, 1800, 3300, 3), np.uint8)[:, ::-1, ::2]
    shape = (9, 700, 1800) if dtype == "int16" else (9, 30, 40)
    return rng.integers(0, 2 if dtype == "bool" else 200, shape).astype(dtype).transpose(2, 1, 0)[::-2, 1:]


@pytest.mark.parametrize("dtype", ["int16", ">i2", "uint8", "bool", "float32", "float64", "rgb"])
def test_a_job_arrives_as_it_was_sent(tmp_path, dtype):
    rng = np.random.default_rng(1)
    first = Volume(awkward(dtype), rng.normal(size=(4, 4)) / 3, "MR", None, "Köpf\udce4", dtype == "rgb", "a note")
    second = Volume(np.zeros((0, 2, 3), np.int8), np.diag([-0.0, 1e-300, 1e300, 1]), "CT", "HU")
    second.notices.append(["dicom_straightened", {"degrees": 13.5}])
    bent = Displacement(rng.normal(size=(20, 30, 40, 3)).astype(np.float32), np.diag([1, 2, 3, 1.0]))
    table = np.linspace(0, 1, 9, dtype=np.float32).reshape(3, 3)
    settings = FusionSettings(window_first=(-1 / 3, np.float64(0.1)), colour=table, region=rng.normal(size=(99, 3)))
    settings = replace(settings, threads=np.int64(3), lattice=((3, 4, 5), rng.normal(size=(4, 4))), weights="compact")
    pieces = list(exchange.send(exchange.Job(first, second, settings, bent), tmp_path / "1"))
    assert max(pieces) <= exchange.PIECE
    assert len(pieces) == (4 if first.voxels.nbytes > exchange.PIECE else 3)
    got = exchange.receive(tmp_path / "1")
    for was, now in ((first, got.first), (second, got.second)):
        assert now.voxels.dtype == was.voxels.dtype
        assert np.array_equal(now.voxels, was.voxels)
        assert now.ijk_to_physical.tobytes() == was.ijk_to_physical.tobytes()
        assert replace(now, voxels=0, ijk_to_physical=0) == replace(was, voxels=0, ijk_to_physical=0)
    assert got.settings == settings
    assert np.array_equal(got.displacement.vectors, bent.vectors)
    assert np.array_equal(got.displacement.matrix, bent.matrix)
    assert isinstance(got.first.voxels.base, np.memmap) or os.name == "nt" or got.first.voxels.nbytes <= exchange.INLINE


def test_a_job_is_whole_only_at_the_end(tmp_path, job):
    for _ in exchange.send(job, tmp_path / "1"):
        assert not (tmp_path / "1" / "job.json").exists()
    assert exchange.receive(tmp_path / "1").displacement is None


@POSIX
def test_a_disk_that_is_full_or_gone_is_told(tmp_path, job):
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(FusionError) as caught:
            list(exchange.send(job, tmp_path / "1"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.code, caught.value.facts) == ("exchange_failed", {"path": str(tmp_path / "1")})
    for call in (lambda: list(exchange.send(job, tmp_path / "a" / "b")), lambda: exchange.make_folder(tmp_path / "a")):
        with pytest.raises(FusionError) as caught:
            call()
        assert caught.value.code == "exchange_failed"


def test_no_folder_but_an_exchange_folder_is_removed(tmp_path):
    exchange.remove_folder(tmp_path)
    assert tmp_path.exists()
    folder = exchange.make_folder(tmp_path)
    exchange.remove_folder(folder)
    exchange.remove_folder(folder)
    assert not os.path.exists(folder)


def test_a_result_outlives_its_files(tmp_path):
    voxels = awkward("int16")
    volume = Volume(voxels, np.diag([1 / 3, 1 / 7, 3, 1]), name="fused", note="derived")
    report = FusionReport(overlap=np.float32(0.5), windows={"first": {"low": np.int16(-3), "file": "a"}})
    assert max(exchange.send_result(tmp_path, volume, report)) <= exchange.PIECE
    got, told = exchange.receive_result(tmp_path)
    for file in tmp_path.iterdir():
        file.unlink()
    assert np.array_equal(got.voxels, voxels)
    assert got.ijk_to_physical.tobytes() == volume.ijk_to_physical.tobytes()
    assert told == report.to_dict()
    assert not got.voxels.flags.writeable or os.name == "nt"


@pytest.mark.parametrize("name", ["job.json", "job.first.voxels.npy"])
def test_a_cut_file_is_no_job(tmp_path, job, name):
    list(exchange.send(job, tmp_path))
    os.truncate(tmp_path / name, 200)
    with pytest.raises((ValueError, OSError)):
        exchange.receive(tmp_path)


def test_python_objects_are_refused(tmp_path, job):
    with pytest.raises(FusionError) as caught:
        list(exchange.send(replace(job, second=Volume(np.array([[[None]]]), np.eye(4))), tmp_path))
    assert caught.value.code == "voxels_unusable"
