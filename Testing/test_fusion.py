"""fuse(): geometry, values, what is reported, and bad input; on the phantom, whose truth is known."""

import json
import threading
import time
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pytest

from ASFEFusionLib import colour, engine, intensity, phantom, space
from ASFEFusionLib.coverage import coverage
from ASFEFusionLib.errors import WARNINGS, Cancelled, FusionError
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.grids import finest, grid_of
from ASFEFusionLib.network.weights import find
from ASFEFusionLib.settings import FusionSettings
from ASFEFusionLib.volume import Volume

CT_WIDE = (-1000.0, 4000.0)


def codes(report):
    return [warning.code for warning in report.warnings]


def expected_grid(first, second, choice):
    grids = grid_of(first), grid_of(second)
    return {"first": grids[0], "second": grids[1], "finest": finest(*grids)}[choice]


@pytest.mark.parametrize("choice", ["first", "second", "finest"])
def test_geometry_is_that_of_the_chosen_grid(heads, choice):
    fused, report = fuse(heads["CT"], heads["MR"], FusionSettings(grid=choice))
    grid = expected_grid(heads["CT"], heads["MR"], choice)
    assert fused.size_ijk == grid.size == tuple(report.grid["size"])
    corner = np.array([*grid.size, 1.0])
    assert np.abs((fused.ijk_to_physical - grid.matrix) @ corner).max() < 1e-4
    assert fused.voxels.dtype == np.int16
    assert 0 <= fused.voxels.min() < fused.voxels.max() <= 1000
    assert fused.units is None
    assert "not for quantitation" in fused.name


@pytest.mark.parametrize("choice", ["first", "second", "finest"])
@pytest.mark.parametrize("bright", ["CT", "PET"])
def test_a_lone_bright_voxel_lands_where_it_is(heads, choice, bright):
    """Within half a voxel of the result along each axis, whichever volume holds it and whatever the grid."""
    settings = FusionSettings(grid=choice, window_first=CT_WIDE, window_second=(0.0, 60.0))
    pair = {m: heads[m] for m in ("CT", "PET")}
    before, _ = fuse(*pair.values(), settings)
    pair[bright], _, position = phantom.bright_voxel(pair[bright], {"CT": 4000, "PET": 60.0}[bright])
    after, _ = fuse(*pair.values(), settings)
    difference = np.abs(after.voxels.astype(int) - before.voxels)
    k, j, i = np.unravel_index(difference.argmax(), difference.shape)
    index = np.linalg.inv(after.ijk_to_physical) @ [*position, 1]
    assert difference.max() > 50
    assert np.abs(index[:3] - [i, j, k]).max() <= 0.5 + 1e-6


def test_equal_slices_stay_equal(heads, monkeypatch):
    """No flicker: one window a volume, and a slice's result does not depend on its batch."""
    monkeypatch.setitem(engine.BATCH_PIXELS, "cpu", 3 * 90 * 90)
    pair = []
    for seed, modality in enumerate(("CT", "CT")):
        one = heads[modality].voxels[20:21].astype(np.float32) + 30 * seed
        pair.append(Volume(np.repeat(one, 10, axis=0), heads[modality].ijk_to_physical, modality="CT"))
    fused, _ = fuse(*pair)
    assert np.ptp(fused.voxels[0]) > 500
    assert np.abs(fused.voxels - fused.voxels[:1]).max() == 0


def test_where_one_volume_ends_the_other_shows_alone(heads):
    ct, mr = heads["CT"], heads["MR"]
    fused, report = fuse(ct, mr, FusionSettings(window_first=CT_WIDE))
    outside = coverage(mr, grid_of(ct)).slab(0, ct.size_ijk[2]) == 0
    assert outside.mean() > 0.1
    alone = (ct.voxels.astype(np.float32) + 1000) / 5000 * 1000
    assert np.abs(fused.voxels - alone)[outside].max() <= 0.51
    assert 0.5 < report.overlap <= 1


def test_the_end_of_a_volume_leaves_no_edge():
    """Two even bodies of different brightness: the fused value passes from one to the other in small steps."""
    rng = np.random.default_rng(0)
    big = Volume((500 + rng.normal(0, 1, (3, 120, 120))).astype(np.float32), np.eye(4), modality="MR")
    matrix = np.eye(4)
    matrix[:2, 3] = 30
    small = Volume((800 + rng.normal(0, 1, (3, 60, 60))).astype(np.float32), matrix, modality="MR")
    fused, _ = fuse(big, small, FusionSettings(window_first=(0, 1000), window_second=(0, 1000)))
    row = fused.voxels[1, 60].astype(int)
    assert abs(row[10] - 500) < 10
    assert row[60] > 600
    assert np.abs(np.diff(row)).max() < 0.5 * (row[60] - row[10])
    # Just outside the small one the big one shows as it is; no dark or bright rim before the fade.
    assert np.abs(row[20:30] - row[5:20].mean()).max() < 25


def test_the_network_itself_is_faded_in(monkeypatch):
    """Even if it gave pure white: no step where the second volume begins."""
    monkeypatch.setattr(engine.Engine, "fuse", lambda self, a, b, beat: np.ones_like(a))
    big = Volume(np.linspace(0.1, 0.2, 100 * 100, dtype=np.float32).reshape(1, 100, 100), np.eye(4), modality="MR")
    matrix = np.eye(4)
    matrix[0, 3] = 50
    small = replace(big, voxels=big.voxels[..., :50], ijk_to_physical=matrix)
    fused, _ = fuse(big, small, FusionSettings(window_first=(0, 1), window_second=(0, 1)))
    row = fused.voxels[0, 50].astype(int)
    assert row[45] < 210
    assert row[70] == 1000
    assert np.diff(row).max() < 260


def test_exchanged_inputs_give_the_same_picture(heads):
    one, _ = fuse(heads["CT"], heads["MR"], FusionSettings(grid="first"))
    other, _ = fuse(heads["MR"], heads["CT"], FusionSettings(grid="second"))
    assert np.abs(one.voxels - other.voxels).max() <= 1


def test_inputs_stay_as_they_are(heads):
    pair = [replace(heads[m], voxels=heads[m].voxels.copy()) for m in ("CT", "PET")]
    pair[1].voxels[0, 0, :5] = np.nan
    kept = [(v.voxels.copy(), v.ijk_to_physical.copy(), v.name) for v in pair]
    fuse(*pair, FusionSettings(colour="hot"))
    for volume, (voxels, matrix, name) in zip(pair, kept, strict=True):
        assert np.array_equal(volume.voxels, voxels, equal_nan=True)
        assert np.array_equal(volume.ijk_to_physical, matrix)
        assert volume.name == name


def test_report(heads):
    _, report = fuse(heads["CT"], heads["PET"], FusionSettings(colour="hot"))
    values = report.to_dict()
    assert values["device"] == "cpu" or values["device"] in ("cuda", "mps")
    assert values["weights_name"] == "compact"
    assert len(values["weights_sha256"]) == 64
    assert values["windows"]["first"]["low"] == -160
    assert values["windows"]["second"]["units"] == "SUV"
    assert values["colour"] == {"map": "hot", "volume": "second"}
    assert set(values["seconds"]) == {"windows", "network", "alignment", "space", "resample", "cover", "fuse", "colour"}
    assert "not for quantitation" in values["note"]
    assert values["warnings"] == []


@pytest.mark.parametrize("name", ["hot", "rainbow"])
def test_where_only_the_functional_volume_shows_its_colours_are_the_maps(heads, name):
    """A PET that reaches beyond the MR: there the map's own colours; inside, colour where there is uptake."""
    fused, _ = fuse(heads["MR"], heads["PET"], FusionSettings(colour=name, grid="second"))
    assert fused.voxels.dtype == np.uint8
    pet = np.clip(heads["PET"].voxels / fuse_window(heads, name), 0, 1)
    points = np.array(colour.MAPS[name])
    at = np.linspace(0, 1, len(points))
    expected = np.stack([np.interp(pet, at, points[:, c]) for c in range(3)], -1) * 255
    alone = coverage(heads["MR"], grid_of(heads["PET"])).slab(0, heads["PET"].size_ijk[2]) == 0
    assert (pet[alone] > 0.1).sum() > 100
    assert np.abs(fused.voxels - expected)[alone].max() < 2.5
    inside = ~alone & (pet > 0.3) & (pet < 0.8)
    assert np.median(np.ptp(fused.voxels[inside].astype(int), axis=-1)) > 60


def fuse_window(heads, name):
    _, report = fuse(heads["MR"], heads["PET"], FusionSettings(colour=name))
    assert report.windows["second"]["low"] == 0
    return report.windows["second"]["high"]


def test_the_uptake_beyond_its_volume_colours_nothing(heads):
    """The faces of a hot PET must not colour what lies outside it."""
    pet = heads["PET"]
    middle = pet.size_ijk[2] // 2
    slab = replace(pet, voxels=pet.voxels[middle - 4 : middle + 4], ijk_to_physical=pet.ijk_to_physical.copy())
    slab.ijk_to_physical[:3, 3] += (middle - 4) * pet.ijk_to_physical[:3, 2]
    fused, _ = fuse(heads["CT"], slab, FusionSettings(colour="hot"))
    outside = coverage(slab, grid_of(heads["CT"])).slab(0, heads["CT"].size_ijk[2]) == 0
    assert np.ptp(fused.voxels[outside].astype(int), axis=-1).max() == 0


def test_ct_is_windowed_by_its_partner(heads):
    for pair, place in ((("CT", "MR"), "first"), (("MR", "CT"), "second")):
        _, report = fuse(*(heads[m] for m in pair))
        assert report.windows[place] == {"low": -450, "high": 1050, "source": "automatic: ct-bone", "units": "HU"}
    _, report = fuse(heads["CT"], heads["PET"])
    assert report.windows["first"]["source"] == "automatic: ct-soft-tissue"


def test_which_volume_takes_the_colour(heads):
    _, report = fuse(heads["PET"], heads["MR"], FusionSettings(colour="hot"))
    assert report.colour["volume"] == "first"
    _, report = fuse(heads["PET"], heads["MR"], FusionSettings(colour="hot", functional="second"))
    assert report.colour["volume"] == "second"
    _, report = fuse(heads["CT"], heads["MR"], FusionSettings(colour="hot"))
    assert codes(report) == ["functional_guess"]


def test_progress_runs_from_0_to_1_and_names_the_work(heads):
    said = []
    fuse(heads["CT"], heads["MR"], progress=lambda fraction, step: said.append((fraction, step)))
    fractions = [fraction for fraction, _ in said]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert {step.code for _, step in said} >= {"values", "slices", "done"}
    # Which slice is named hangs on the time: what comes too soon after another sign is not said.
    assert any(
        str(step).startswith("Slice ") and str(step).endswith(f" of {len(heads['CT'].voxels)}") for _, step in said
    )


def test_progress_and_cancel_within_one_large_slice(monkeypatch):
    """A slice of 1024 x 1024 takes seconds on a slow core: signs come from inside the network."""
    seen = []
    rng = np.random.default_rng(0)
    pair = [Volume(rng.random((1, 300, 300), np.float32), np.eye(4), modality="MR") for _ in range(2)]

    def cancelled():
        import inspect

        seen.append(any(frame.function == "after" for frame in inspect.stack()))
        return seen.count(True) == 3

    with pytest.raises(Cancelled):
        fuse(*pair, cancelled=cancelled)
    assert seen.count(True) == 3


def test_cancel_is_heard_within_a_batch(heads, monkeypatch):
    monkeypatch.setitem(engine.BATCH_PIXELS, "cpu", 2 * 90 * 90)
    batches = []
    original = engine.Engine.fuse
    stop = threading.Event()

    def counted(self, a, b, tick):
        batches.append(len(a))
        if len(batches) == 3:
            stop.set()
        return original(self, a, b, tick)

    monkeypatch.setattr(engine.Engine, "fuse", counted)
    with pytest.raises(Cancelled):
        fuse(heads["CT"], heads["CT"], FusionSettings(), cancelled=stop.is_set)
    assert len(batches) == 3


def test_not_finite_voxels_are_background_and_said(heads):
    pet = heads["PET"]
    broken = replace(pet, voxels=pet.voxels.copy())
    air = pet.voxels < 0.02
    assert air.sum() > 1000
    broken.voxels[air] = np.nan
    broken.voxels[0, 0, 0] = np.inf
    whole, _ = fuse(heads["MR"], pet)
    fused, report = fuse(heads["MR"], broken)
    assert codes(report) == ["not_finite"]
    assert str(int((~np.isfinite(broken.voxels)).sum())) in str(report.warnings[0])
    assert np.abs(fused.voxels - whole.voxels).max() < 30


def shifted(volume, mm):
    matrix = volume.ijk_to_physical.copy()
    matrix[:3, 3] += mm
    return replace(volume, ijk_to_physical=matrix)


def test_little_overlap_is_said(heads):
    _, report = fuse(heads["CT"], shifted(heads["CT"], (0, 0, 120)))
    assert codes(report) == ["little_overlap"]
    assert report.overlap < 0.5


def test_unknown_modality_is_said(heads):
    bare = Volume(heads["MR"].voxels, heads["MR"].ijk_to_physical, name="scan")
    _, report = fuse(heads["CT"], bare)
    assert codes(report) == ["modality_unknown"]
    _, report = fuse(heads["CT"], bare, FusionSettings(modality_second="MR"))
    assert codes(report) == []


def refused(first, second, **settings):
    with pytest.raises(FusionError) as caught:
        fuse(first, second, FusionSettings(**settings))
    return caught.value.code


def test_bad_input(heads, tmp_path):
    ct, mr = heads["CT"], heads["MR"]
    assert refused(ct, shifted(mr, (0, 0, 5000))) == "no_overlap"
    assert refused(ct, replace(mr, voxels=np.full_like(mr.voxels, 7))) == "volume_constant"
    assert refused(ct, replace(mr, voxels=np.full(mr.voxels.shape, np.nan, np.float32))) == "volume_nan"
    assert refused(ct, replace(mr, voxels=np.zeros((*mr.voxels.shape, 3), np.uint8))) == "volume_colour"
    picture = Volume(np.zeros((1, 20, 20), np.uint8), np.eye(4), two_d=True)
    assert refused(ct, picture) == "dimensions_differ"
    assert refused(picture, replace(picture, voxels=picture.voxels[:, :10])) == "sizes_differ"
    assert refused(ct, mr, weights=str(tmp_path / "none.pt")) == "weights_missing"
    assert refused(ct, mr, window_first="pet-suv-5") == "window_units"


@pytest.mark.parametrize(
    "bad",
    [
        {"grid": "third"},
        {"device": "tpu"},
        {"functional": "both"},
        {"modality_first": "MRI"},
        {"region": [1, 2]},
        {"lattice": (1, 2)},
        {"grid": np.zeros(2)},
    ],
)
def test_settings_refuse_unknown_values(bad):
    with pytest.raises(FusionError) as caught:
        FusionSettings(**bad)
    assert caught.value.code == "setting_unknown"
    assert str(next(iter(bad.values()))) in str(caught.value)


@pytest.mark.parametrize("bad", [0, -1, 1.5, "two"])
def test_threads_are_a_whole_number_above_0(bad):
    with pytest.raises(FusionError) as caught:
        FusionSettings(threads=bad)
    assert caught.value.code == "setting_not_positive"


def test_more_threads_than_there_are(heads):
    fuse(heads["CT"], heads["MR"], FusionSettings(threads=100_000))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Failed to allocate memory for image.")])
def test_memory_that_does_not_suffice(heads, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(space.Reader, "read", full)
    assert refused(heads["CT"], heads["MR"]) == "memory_out"


def test_settings_are_checked_again_when_used(heads):
    settings = FusionSettings()
    settings.grid = "third"
    with pytest.raises(FusionError):
        fuse(heads["CT"], heads["MR"], settings)


def test_settings_and_report_turn_into_json(heads, tmp_path):
    settings = FusionSettings(
        colour=np.array([[0, 0, 0], [1, 0.5, 0]]), weights=find(), window_first=(np.float32(0), 9)
    )
    json.dumps(asdict(settings))
    _, report = fuse(heads["MR"], heads["PET"], settings)
    assert json.loads(json.dumps(report.to_dict()))["colour"]["map"] == [[0, 0, 0], [1, 0.5, 0]]


def test_a_device_that_is_not_there(heads, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refused(heads["CT"], heads["MR"], device="cuda") == "device_missing"


def test_two_runs_at_once_do_not_hear_each_others_cancel(heads):
    """The network is shared between threads; its signs are not."""
    threads, wrong = {}, []

    def run(name, cancelled):
        me = threading.current_thread()

        def asked():
            if threading.current_thread() is not me:
                wrong.append(name)
            return cancelled()

        try:
            threads[name] = fuse(heads["CT"], heads["MR"], FusionSettings(threads=1), cancelled=asked)
        except Cancelled:
            threads[name] = None

    began = time.monotonic()
    pair = [
        threading.Thread(target=run, args=("stopped", lambda: time.monotonic() - began > 0.3)),
        threading.Thread(target=run, args=("whole", lambda: False)),
    ]
    for thread in pair:
        thread.start()
    for thread in pair:
        thread.join()
    assert threads["whole"] is not None
    assert wrong == []


def test_a_thin_volume_at_the_very_face_is_not_black():
    """A grid point on the outer face of the second volume takes its value there."""
    first = Volume(np.linspace(0.7, 1, 21 * 64, dtype=np.float32).reshape(21, 8, 8), np.eye(4), modality="MR")
    matrix = np.diag([1.0, 1.0, 2.0, 1.0])
    matrix[2, 3] = 0.5
    second = Volume(np.full((10, 8, 8), 0.9, np.float32), matrix, modality="MR")
    second.voxels[0, 0, 0] = 0.0
    fused, _ = fuse(first, second, FusionSettings(window_first=(0, 2), window_second=(0, 1)))
    assert fused.voxels[:20, 1:, 1:].min() > 300


def test_voxels_and_places_that_make_no_sense(heads):
    ct = heads["CT"]
    for bad, code in (
        (replace(ct, voxels=ct.voxels[0]), "voxels_unusable"),
        (replace(ct, voxels=ct.voxels[:0]), "voxels_unusable"),
        (replace(ct, voxels=ct.voxels.astype(complex)), "voxels_unusable"),
        (replace(ct, ijk_to_physical=np.zeros((4, 4))), "geometry_unusable"),
    ):
        assert refused(bad, heads["MR"]) == code
        assert refused(heads["MR"], bad) == code


def test_values_beyond_float32_count_as_not_finite(heads):
    mr = heads["MR"]
    huge = replace(mr, voxels=mr.voxels.astype(np.float64))
    huge.voxels[0, 0, 0] = 1e300
    _, report = fuse(heads["CT"], huge)
    assert codes(report) == ["not_finite"]


def test_every_warning_has_its_sentence():
    assert all(sentence.endswith(".") for sentence in WARNINGS.values())


@pytest.mark.parametrize("call, code", [("__init__", "resample"), ("read", "slices")])
@pytest.mark.parametrize("cancel", [False, True])
def test_signs_go_on_while_one_call_takes_long(heads, monkeypatch, cancel, call, code):
    original, moments, threads = getattr(space.Reader, call), [], set()

    def slow(reader, one, other, tick, *more):
        for n in range(15):
            time.sleep(0.1)
            tick(n / 15)
        return original(reader, one, other, tick, *more)

    def progress(_, step):
        threads.add(threading.current_thread())
        if step.code == code:
            moments.append(time.monotonic())

    monkeypatch.setattr(space.Reader, call, slow)
    running = threading.active_count()
    if cancel:
        began = time.monotonic()
        with pytest.raises(Cancelled):
            fuse(heads["CT"], heads["MR"], progress=progress, cancelled=lambda: len(moments) > 2)
        assert time.monotonic() - began < 1.4
        assert threading.active_count() == running  # nothing goes on behind the caller's back
    else:
        fuse(heads["CT"], heads["MR"], progress=progress)
        assert len(moments) > 10
        assert np.diff(moments).max() < 0.9
    assert threads == {threading.current_thread()}


def test_the_result_does_not_depend_on_how_many_slices_are_read_at_a_time(heads, monkeypatch):
    settings = FusionSettings(colour="hot", check=False)
    whole, _ = fuse(heads["MR"], heads["PET"], settings)
    monkeypatch.setattr(space, "SLAB_POINTS", 1)
    slices, _ = fuse(heads["MR"], heads["PET"], settings)
    assert np.abs(whole.voxels.astype(int) - slices.voxels).max() <= 1  # a rounding of places in float64, then to bytes
    assert (whole.voxels != slices.voxels).mean() < 1e-4


def test_memory_grows_with_the_volumes_alone(monkeypatch):
    """Beside the result, nothing of the grid's size is held: neither the resampled values nor a mask."""
    monkeypatch.setattr(intensity, "SAMPLE", 1000)
    monkeypatch.setattr(space, "SLAB_POINTS", 4 * 128 * 128)
    monkeypatch.setattr(engine.Engine, "fuse", lambda _, a, b, tick: (a + b) / 2)
    peaks = []
    for slices in (32, 32, 80):  # what the first run alone takes does not count
        rng = np.random.default_rng(0)
        first, second = (
            Volume(rng.integers(0, 1000, (slices, 128, 128), np.int16), matrix, modality="MR")
            for matrix in (np.eye(4), np.diag([0.97, 0.97, 0.97, 1.0]))
        )
        tracemalloc.start()
        fuse(first, second, FusionSettings(check=False))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert 0 < (peaks[2] - peaks[1]) / (48 * 128 * 128) < 2.5  # bytes a voxel, of which the result's int16 is 2
