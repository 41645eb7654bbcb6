"""worker: the process that fuses for Slicer, what it answers, and how it ends; over pipes, as Slicer has it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ASFEFusionLib import exchange, worker
from ASFEFusionLib.errors import STEPS, FusionError
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.settings import FusionSettings
from ASFEFusionLib.space import Displacement

ENDINGS = {"done", "error", "cancelled", "failed"}
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


class Served:
    """A worker process; `patch` is Python that runs in it before it serves."""

    def __init__(self, parent, threads=1, patch=""):
        self.folder = exchange.make_folder(parent)
        arguments = worker.command(threads, self.folder)
        arguments[1] = arguments[1].replace("worker.main()", f"\n{patch}\nworker.main()")
        pipe = subprocess.PIPE
        self.errors = open(parent / "stderr", "w+b")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen([sys.executable, *arguments], stdin=pipe, stdout=pipe, stderr=self.errors)
        self.output, self.strays, self.last = queue.Queue(), b"", 0
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            answers, stray, _ = worker.split(line)
            self.strays += stray
            for answer in answers:
                self.output.put(answer)

    def say(self, **command):
        self.process.stdin.write(worker.line(command))
        self.process.stdin.flush()

    def run(self, job):
        """Sends a job; -> its folder."""
        self.last += 1
        folder = os.path.join(self.folder, str(self.last))
        assert max(exchange.send(job, folder)) <= exchange.PIECE
        self.say(run=self.last, folder=folder)
        return folder

    def hear(self, *keys, seconds=60):
        """The answers up to and with the first that has one of the keys."""
        heard = []
        while not heard or not set(keys) & set(heard[-1]):
            heard.append(self.output.get(timeout=seconds))
        return heard

    def until_slices(self):
        while self.hear("progress")[-1]["step"] != "slices":
            pass

    def fuses(self, job):
        return self.run(job) and "done" in self.hear(*ENDINGS)[-1]

    def ended(self, seconds):
        """Whether it is gone by then, and its folder with it."""
        self.process.wait(seconds)
        return not os.path.exists(self.folder)


@pytest.fixture
def serve(tmp_path):
    served = []

    def start(**kw):
        served.append(Served(tmp_path, **kw))
        return served[-1]

    yield start
    for one in served:
        one.process.kill()
        one.process.wait()
        one.reader.join()
        one.process.stdin.close()
        one.process.stdout.close()
        one.errors.close()


@pytest.fixture
def job(heads):
    return exchange.Job(heads["CT"], heads["MR"], FusionSettings())


@pytest.fixture(scope="session")
def large(heads):
    """Minutes of work on a CPU."""

    def enlarged(volume):
        return replace(volume, voxels=np.repeat(np.tile(volume.voxels, (1, 2, 2)), 40, axis=0))

    return exchange.Job(enlarged(heads["CT"]), enlarged(heads["MR"]), FusionSettings())


@pytest.mark.judged
def test_the_result_is_that_of_fuse_and_the_process_stays(serve, heads):
    job = exchange.Job(heads["MR"], heads["PET"], FusionSettings(colour="hot", threads=1, region=[(0, 0, 0)] * 2))
    fields = np.zeros((4, 4, 4, 3), np.float32) + 2
    job.displacement = Displacement(fields, np.diag([60.0, 60, 60, 1]))
    expected, report = fuse(job.first, job.second, job.settings, displacement=job.displacement)
    child = serve()
    assert child.hear("ready")[-1]["pid"] == child.process.pid
    for _ in range(2):
        folder = child.run(job)
        *heard, last = child.hear(*ENDINGS)
        assert last == {"run": child.last, "done": folder}
        fractions = [answer["progress"] for answer in heard]
        assert np.diff(fractions).min() > -1e-9
        assert fractions[-1] == 1
        assert {answer["step"] for answer in heard} <= set(STEPS)
        assert all(STEPS[a["step"]].format(**a["facts"]) and a["run"] == child.last for a in heard)
        volume, got = exchange.receive_result(folder)
        assert volume.ijk_to_physical.tobytes() == expected.ijk_to_physical.tobytes()
        assert np.abs(volume.voxels.astype(int) - expected.voxels).max() <= 1
        assert (volume.name, volume.note) == (expected.name, expected.note)
        times = {"seconds": 0, "slice_seconds": 0}
        assert got | times == json.loads(json.dumps(report.to_dict())) | times


def test_cancel_is_answered_within_a_second(serve, large, job):
    child = serve()
    child.run(large)
    child.until_slices()
    began = time.monotonic()
    child.say(cancel=child.last)
    assert child.hear(*ENDINGS)[-1] == {"run": 1, "cancelled": True}
    assert time.monotonic() - began < 1
    child.run(job)
    child.say(cancel=child.last)  # perhaps before it has begun
    child.say(cancel=1)
    assert child.hear(*ENDINGS)[-1] == {"run": 2, "cancelled": True}
    assert child.fuses(job)


BROKEN = """
from ASFEFusionLib import fusion
ways = [lambda: [][1], lambda: "".join(1 for _ in "a"), lambda: bytearray(1 << 62)]
def broken(*arguments, fuse=fusion.fuse, **kw):
    return ways.pop(0)() if ways else fuse(*arguments, **kw)
fusion.fuse = broken
"""


def test_whatever_goes_wrong_is_told_and_the_next_run_goes_on(serve, job):
    child = serve(patch=BROKEN)
    for name in ("IndexError", "TypeError"):
        child.run(job)
        answer = child.hear(*ENDINGS)[-1]
        assert answer["failed"].startswith(name)
        assert "Traceback" in answer["details"]
        assert "broken" in answer["details"]
    child.run(job)
    assert child.hear(*ENDINGS)[-1]["error"] == "memory_out"
    child.process.stdin.write(b'garbage\n\n[1]\n7\n"run"\n{}\n')
    flat = replace(job.first, voxels=np.zeros_like(job.first.voxels), name="Flat")
    child.run(replace(job, first=flat))
    assert child.hear(*ENDINGS)[-1] == {
        "run": child.last,
        "error": "volume_constant",
        "facts": {"name": "Flat"},
        "text": str(FusionError("volume_constant", name="Flat")),
    }
    assert child.fuses(job)


@pytest.mark.parametrize("damage", ["cut", "missing", "garbled", "empty", "other", "no folder"])
def test_a_damaged_job_fails_alone(serve, job, damage):
    child = serve()
    folder = os.path.join(child.folder, "7")
    list(exchange.send(job, folder))
    voxels, about = (os.path.join(folder, name) for name in ("job.first.voxels.npy", "job.json"))
    if damage == "cut":
        os.truncate(voxels, 5000)
    elif damage == "missing":
        os.remove(voxels)
    elif damage != "no folder":
        with open(about, "w") as file:
            file.write({"garbled": '{"first": ', "empty": "", "other": '[{"first": 1}]'}[damage])
    child.say(run=7, **({} if damage == "no folder" else {"folder": folder}))
    assert {"run", "failed", "details"} <= set(child.hear(*ENDINGS)[-1])
    assert child.fuses(job)


def test_what_libraries_print_does_not_disturb(serve, job):
    patch = """
import os
from ASFEFusionLib import fusion
def noisy(*arguments, fuse=fusion.fuse, **kw):
    print('{"run": 1, "done": "printed"}', flush=True)
    os.write(1, b"from C, without an end")
    os.system("echo from a process")
    return fuse(*arguments, **kw)
fusion.fuse = noisy
"""
    child = serve(patch=patch)
    folder = child.run(job)
    assert child.hear(*ENDINGS)[-1] == {"run": 1, "done": folder}
    assert child.strays == b""
    child.errors.seek(0)
    said = child.errors.read()
    assert all(words in said for words in (b"printed", b"from C", b"from a process"))


@pytest.mark.parametrize("way", ["end of stdin", "quit", pytest.param("terminated", marks=POSIX)])
@pytest.mark.parametrize("busy", [True, False])
def test_it_leaves_nothing_however_it_is_ended(serve, large, way, busy):
    child = serve()
    child.hear("ready")
    if busy:
        child.run(large)
        child.until_slices()
    began = time.monotonic()
    if way == "quit":
        child.say(quit=True)
    elif way == "terminated":
        child.process.terminate()
    else:
        child.process.stdin.close()
    assert child.ended(5)
    assert time.monotonic() - began < 1
    assert child.process.returncode == 0


@POSIX
def test_it_goes_when_slicer_crashes(tmp_path, large):
    folder = exchange.make_folder(tmp_path)
    list(exchange.send(large, os.path.join(folder, "1")))
    arguments = [sys.executable, *worker.command(1, folder)]
    order = worker.line({"run": 1, "folder": os.path.join(folder, "1")})
    slicer = (
        f"import subprocess; p = subprocess.Popen({arguments!r}, stdin=subprocess.PIPE); p.stdin.write({order!r}); "
    )
    slicer += "p.stdin.flush(); p.wait()"
    # Its stdout is the worker's too, and ends when both are gone.
    with subprocess.Popen([sys.executable, "-c", slicer], stdout=subprocess.PIPE) as process:
        while b"slices" not in process.stdout.readline():
            pass
        os.kill(process.pid, signal.SIGKILL)
        began = time.monotonic()
        process.stdout.read()
        assert time.monotonic() - began < 2
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("most", "wanted", "expected"), [(1, None, 1), (2, 1, 1), (2, 5, 2)])
def test_the_threads_are_limited_in_every_library(serve, job, most, wanted, expected):
    patch = """
early = {"numpy", "torch", "SimpleITK"} & set(sys.modules)
def probe(self, *arguments, fuse=worker.Worker.fuse):
    import json, os, torch, SimpleITK
    from ASFEFusionLib import fusion
    def slices(*_, **__):
        itk = SimpleITK.ProcessObject.GetGlobalDefaultNumberOfThreads()
        limits = [os.environ[name] for name in worker.THREADS]
        raise RuntimeError(json.dumps([sorted(early), torch.get_num_threads(), itk, limits, os.nice(0)]))
    fusion._fuse_slices = slices
    fuse(self, *arguments)
worker.Worker.fuse = probe
"""
    child = serve(threads=most, patch=patch)
    child.run(replace(job, settings=replace(job.settings, threads=wanted)))
    summary = child.hear(*ENDINGS)[-1]["failed"]
    early, torch, itk, limits, nice = json.loads(summary.partition(": ")[2])
    assert early == []  # what is imported before the limits are set does not keep them
    assert torch == min(expected, os.cpu_count())
    assert itk <= most
    assert set(limits) == {str(most)}
    # As much nicer as it should be than whoever started it.
    assert os.name == "nt" or nice >= min(19, os.nice(0) + worker.NICENESS)


def test_warm_loads_ahead(serve, job):
    patch = """
def probe(self, *arguments):
    from ASFEFusionLib import engine
    engine.Engine(None, "auto")
    raise RuntimeError(f"hits {engine._load.cache_info().hits}")
worker.Worker.fuse = probe
"""
    child = serve(patch=patch)
    child.say(warm={"weights": "no such weights"})
    child.say(warm=True)
    child.run(job)
    assert child.hear(*ENDINGS)[-1]["failed"] == "RuntimeError: hits 1"


def test_a_process_that_lost_its_gpu_ends_after_it_has_answered(serve, job):
    child = serve(patch="worker.release = lambda: False")
    folder = child.run(job)
    assert child.hear(*ENDINGS)[-1] == {"run": 1, "done": folder, "leaving": True}
    child.process.wait(5)
    assert exchange.receive_result(folder)[0].voxels.any()


def test_answers_arrive_in_any_pieces():
    answers = [{"run": n, "facts": {"name": "ä\n"}} for n in range(3)]
    output = b"noise\n".join(worker.line(answer) for answer in answers)
    for step in (1, 7, 1000):
        got, strays, rest = [], b"", b""
        for start in range(0, len(output), step):
            new, stray, rest = worker.split(rest + output[start : start + step])
            got, strays = got + new, strays + stray
        assert (got, strays, rest) == (answers, b"noise\n" * 2, b"")
    odd = {"facts": {"path": Path("a"), "value": np.float32(0.5), "size": np.arange(2)}}
    assert worker.split(worker.line(odd))[0] == [{"facts": {"path": "a", "value": 0.5, "size": [0, 1]}}]


def test_the_time_left_is_that_of_the_present_step():
    left = worker.TimeLeft()
    assert [left.update(t / 10, "values", t) for t in (0, 0.5, 0.9)] == [None] * 3
    told = [left.update(0.3 + 0.01 * t, "slices", 3 + t) for t in range(70)]
    assert told[:3] == [None] * 3
    assert told[5:] == pytest.approx([70 - t for t in range(5, 70)])
    late = [left.update(0.5, "other", 200), left.update(0.6, "other", 210), left.update(0.6, "other", 210.1)]
    assert late == [None, pytest.approx(40), pytest.approx(40, abs=1)]
