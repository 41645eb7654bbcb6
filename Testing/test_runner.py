"""The panel's runner: a run in a process of its own, over Qt as Slicer has it, and what may happen to that process."""

import logging
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ASFEFusionLib import exchange
from ASFEFusionLib.errors import MESSAGES, STEPS, FusionError
from ASFEFusionLib.settings import FusionSettings
from ASFEFusionLib.volume import Volume

ROOT = Path(__file__).resolve().parents[1]
POSIX = pytest.mark.skipif(os.name == "nt", reason="signals and scripts of POSIX")
LONGEST_BLOCK = 0.5  # seconds; some tens of milliseconds on a machine with nothing else to do


@pytest.fixture(scope="module", autouse=True)
def qt():
    import host

    host.start()
    sys.path.insert(0, str(ROOT / "ASFEFusion"))
    import qt

    yield qt
    sys.path.remove(str(ROOT / "ASFEFusion"))


@pytest.fixture
def make(tmp_path, qt):
    import host

    from ASFEFusionPanel.runner import Runner

    made = []
    host.problems.clear()

    def runner(**kw):
        made.append(Runner(tmp_path, **kw))
        return made[-1]

    yield runner
    for one in made:
        pids = [child.pid for child in one._children if child.alive and child.pid]
        one.stop()
        assert all(gone(pid) for pid in pids)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert not host.problems  # nor did a callback's assertion fail


@pytest.fixture
def job(heads):
    return exchange.Job(heads["CT"], heads["MR"], FusionSettings())


@pytest.fixture(scope="module")
def large(heads):
    """Minutes of work on a CPU."""
    pair = (np.repeat(np.tile(heads[m].voxels, (1, 2, 2)), 40, axis=0) for m in ("CT", "MR"))
    volumes = (replace(heads[m], voxels=voxels) for m, voxels in zip(("CT", "MR"), pair, strict=True))
    return exchange.Job(*volumes, FusionSettings())


@pytest.fixture
def quick(job):
    """A job that is refused before torch is loaded, which takes seconds."""
    return replace(job, first=replace(job.first, voxels=np.zeros_like(job.first.voxels), name="Flat"))


def serves(runner, quick):
    return Call(runner, quick).wait()[:3] == ("error", "volume_constant", {"name": "Flat"})


class Call:
    """A run, and all that is told of it."""

    def __init__(self, runner, job, on_progress=None):
        self.runner, self.progress, self.ends = runner, [], []
        on_progress = on_progress or (lambda *facts: self.progress.append(facts))
        runner.start(job, on_progress, self.done, self.end("error"), self.end("cancelled"))
        assert not self.ends
        assert runner.busy

    def end(self, kind):
        def ended(*facts):
            assert not self.runner.busy
            self.ends.append((kind, *facts))

        return ended

    def done(self, volume, report):
        self.end("done")(volume, report)
        assert volume.voxels.max() > 0  # readable here

    def wait(self, seconds=60):
        """-> kind and facts of its end."""
        turn(lambda: self.ends, seconds)
        turn(lambda: False, 0.05)
        assert len(self.ends) == 1
        assert all(code in STEPS and isinstance(facts, dict) for _, code, facts, _ in self.progress)
        return self.ends[0]

    def until_slices(self):
        turn(lambda: any(step[1] == "slices" for step in self.progress), 60)
        assert not self.ends
        return self


def turn(until, seconds):
    """Runs the event loop, so long or until something holds."""
    import qt

    # Not processEvents again and again: PySide 6.12 loses a reference to None in each call, which Python 3.11 counts.
    loop, timer, end = qt.QEventLoop(), qt.QTimer(), time.monotonic() + seconds
    timer.connect("timeout()", lambda: loop.quit() if time.monotonic() > end or until() else None)
    timer.start(5)
    loop.exec()
    timer.stop()


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")  # without an init, an orphan's name stays behind
    return stat.exists() and stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


def test_two_runs_share_one_process(make, job, tmp_path):
    runner = make()
    pids = []
    for _ in range(2):
        call = Call(runner, job)
        kind, volume, report = call.wait()
        assert kind == "done"
        pids.append(runner._child.pid)
        assert volume.ijk_to_physical.tobytes() == job.first.ijk_to_physical.tobytes()
        assert volume.voxels.shape == job.first.voxels.shape
        assert volume.voxels.std() > 50
        assert report["device"]
        fractions = [step[0] for step in call.progress]
        assert np.diff(fractions).min() > -1e-9
        assert fractions[-1] == 1
        assert os.listdir(runner._child.folder) == []
    assert pids[0] == pids[1] != os.getpid()


def test_the_next_run_may_begin_in_the_callback_of_the_last(make, quick):
    runner, calls = make(), []

    def again(*_):
        calls.append(Call(runner, quick))

    runner.start(quick, lambda *_: None, again, again, again)
    turn(lambda: calls, 60)
    assert calls[0].wait()[1] == "volume_constant"


def test_cancel_leaves_the_process_for_the_next_run(make, large, quick):
    runner = make()
    call = Call(runner, large).until_slices()
    pid = runner._child.pid
    began = time.monotonic()
    runner.cancel()
    runner.cancel()
    assert call.wait(5) == ("cancelled",)
    assert time.monotonic() - began < 1
    assert os.listdir(runner._child.folder) == []
    assert serves(runner, quick)
    assert runner._child.pid == pid


@POSIX
def test_a_process_that_does_not_answer_is_killed_within_a_second(make, large, quick):
    runner = make()
    call = Call(runner, large).until_slices()
    pid, folder = runner._child.pid, runner._child.folder
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    runner.cancel()
    turn(lambda: call.ends, 5)
    assert time.monotonic() - began < 1
    assert call.wait() == ("cancelled",)
    turn(lambda: gone(pid) and not os.path.exists(folder), 2)
    assert gone(pid)
    assert not os.path.exists(folder)
    assert serves(runner, quick)


def test_cancel_while_sending(make, large, quick):
    runner = make()
    runner.cancel()
    for pieces in (0, 1, 3):
        call = Call(runner, large)
        for _ in range(pieces):
            runner._sendPiece()
        assert runner._run.job is not None
        runner.cancel()
        assert call.wait(2) == ("cancelled",)
        assert runner._child is None or os.listdir(runner._child.folder) == []
    assert serves(runner, quick)


@POSIX
@pytest.mark.parametrize("when", ["in a run", "while sending", "its folder while sending", "idle"])
def test_a_killed_process_is_told_and_replaced(make, large, quick, when):
    runner = make()
    assert serves(runner, quick)
    pid, folder = runner._child.pid, runner._child.folder
    if when == "idle":
        os.kill(pid, signal.SIGKILL)
        turn(lambda: not os.path.exists(folder), 2)
    else:
        call = Call(runner, large)
        if when == "in a run":
            call.until_slices()
        else:
            runner._sendPiece()
        if when == "its folder while sending":  # that is no full disk
            exchange.remove_folder(folder)
        else:
            os.kill(pid, signal.SIGKILL)
        kind, code, facts, _ = call.wait(5)
        assert (kind, code, set(facts)) == ("error", "child_died", {"code"})
        assert MESSAGES[code].format(**facts)
    assert not os.path.exists(folder)
    assert serves(runner, quick)
    assert runner._child.pid != pid


@POSIX
def test_a_folder_that_was_cleaned_away_is_replaced(make, quick):
    runner = make()
    assert serves(runner, quick)
    exchange.remove_folder(runner._child.folder)
    assert serves(runner, quick)


@pytest.mark.parametrize("when", ["at once", "while sending", "in a run", "cancelling", "ended", "idle", "warming"])
def test_stop_leaves_nothing_and_is_silent(make, large, quick, tmp_path, when):
    runner = make()
    call = None
    if when == "warming":
        runner.warm()
        turn(lambda: runner._child.pid, 10)
    elif when != "at once":
        call = Call(runner, quick if when == "idle" else large)
        if when == "while sending":
            runner._sendPiece()
        elif when == "idle":
            call.wait()
        elif when == "ended":  # and not yet told
            runner.cancel()
            assert runner._run.over
        else:
            call.until_slices()
    if when == "cancelling":
        runner.cancel()
    pid = runner._child and runner._child.pid
    ends = list(call.ends) if call else []
    began = time.monotonic()
    runner.stop()
    runner.stop()
    assert time.monotonic() - began < 1
    assert os.listdir(tmp_path) == []
    assert pid is None or gone(pid)
    assert not runner.busy
    turn(lambda: False, 0.3)
    assert call is None or call.ends == ends
    assert when == "warming" or serves(runner, quick)


def test_a_second_start_is_refused(make, quick):
    runner = make()
    call = Call(runner, quick)
    with pytest.raises(FusionError) as caught:
        Call(runner, quick)
    assert caught.value.code == "run_busy"
    assert call.wait()[1] == "volume_constant"


def test_a_program_that_is_not_there(make, job, tmp_path):
    runner = make(program=str(tmp_path / "PythonSlicer"))
    runner.warm()
    kind, code, facts, _ = Call(runner, job).wait(5)
    assert (kind, code, facts) == ("error", "child_missing", {"program": runner.program})


def test_a_temporary_folder_that_is_not_there(make, job, tmp_path):
    runner = make()
    runner.temporaryFolder = str(tmp_path / "missing")
    runner.warm()
    assert Call(runner, job).wait(5)[:3] == ("error", "exchange_failed", {"path": runner.temporaryFolder})


def test_errors_arrive_with_their_facts(make, job, quick):
    runner = make()
    expected = ("error", "volume_constant", {"name": "Flat"}, str(FusionError("volume_constant", name="Flat")))
    assert Call(runner, quick).wait() == expected
    kind, code, facts, details = Call(runner, replace(job, displacement=Volume(np.zeros(1), np.eye(4)))).wait()
    assert (kind, code) == ("error", "run_failed")
    assert facts["why"].startswith("TypeError")
    assert "Traceback" in details
    assert Call(runner, replace(job, first=None)).wait()[1] == "run_failed"
    assert serves(runner, quick)


SPEAKS = """#!{python}
import json, sys, time
def say(text):
    sys.stdout.write(text)
    sys.stdout.flush()
    time.sleep(0.05)
run = json.loads(sys.stdin.readline())["run"]
print("last words " + "x" * 5000 + " and the end", file=sys.stderr, flush=True)
time.sleep(0.1)
say("a stray line\\n[1]\\n")
say(json.dumps({{"run": run - 1, "done": "/"}}) + "\\n" + json.dumps({{"run": run, "cancelled": False}})[:9])
say(json.dumps({{"run": run, "progress": 0.5, "step": "values", "facts": {{}}, "left": 3.5}})[9:] + "\\n{{")
say('"run": null, "error": 1}}\\n')
{ending}
"""


FAILS = "say(json.dumps({'run': run, 'failed': 'why', 'details': 'how '}) + '\\n'); time.sleep(9)"


@POSIX
@pytest.mark.parametrize("ending", [pytest.param("sys.exit(3)", id="dies"), pytest.param(FAILS, id="fails")])
def test_output_in_pieces_strays_and_last_words(make, job, tmp_path, ending):
    program = tmp_path / "speaks"
    program.write_text(SPEAKS.format(python=sys.executable, ending=ending))
    program.chmod(0o755)
    call = Call(make(program=str(program)), job)
    kind, code, facts, details = call.wait(10)
    assert call.progress == [(0.5, "values", {}, 3.5)]
    assert kind == "error"
    assert (code, facts) == (("child_died", {"code": 3}) if "exit" in ending else ("run_failed", {"why": "why"}))
    assert len(details) < 5000
    assert details.startswith("how ") or "exit" in ending
    assert "x and the end\na stray line\n[1]\n" in details


@POSIX
def test_a_process_behind_a_launcher_is_ended_too(make, large, tmp_path):
    """PythonSlicer starts Python as a process of its own and waits for it."""
    launcher = tmp_path / "PythonSlicer"
    launcher.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n')
    launcher.chmod(0o755)
    runner = make(program=str(launcher))
    for end in (runner.cancel, runner.stop):
        call = Call(runner, large).until_slices()
        pid, folder = runner._child.pid, runner._child.folder
        os.kill(pid, signal.SIGSTOP)
        end()
        turn(lambda pid=pid, folder=folder: gone(pid) and not os.path.exists(folder), 3)
        assert gone(pid)
        assert not os.path.exists(folder)
        assert call.ends == ([("cancelled",)] if end == runner.cancel else [])


def test_a_callback_that_fails_does_not_stop_the_run(make, job, caplog):
    with caplog.at_level(logging.CRITICAL):
        assert Call(make(), job, on_progress=lambda *_: 1 / 0).wait()[0] == "done"


ECHO = """#!{python}
import os, sys
patch = '''
from ASFEFusionLib import fusion, settings
fusion.fuse = lambda first, second, *_, **__: (second, settings.FusionReport())
'''
program = sys.argv[2].replace("worker.main()", patch + "worker.main()")
os.execv(sys.executable, [sys.executable, "-c", program, *sys.argv[3:]])
"""


@POSIX
def test_the_event_loop_is_not_held_up(make, qt, capsys, tmp_path):
    """By sending 256 x 256 x 100 voxels twice, and receiving as many."""
    program = tmp_path / "echo"
    program.write_text(ECHO.format(python=sys.executable))
    program.chmod(0o755)
    voxels = np.random.default_rng(0).integers(0, 1000, (100, 256, 256), np.int16)
    views = voxels, voxels[::-1].transpose(0, 2, 1)
    job = exchange.Job(*(Volume(view, np.eye(4)) for view in views), FusionSettings())
    runner = make(program=str(program))
    ticks, timer = [time.monotonic()], qt.QTimer()
    timer.connect("timeout()", lambda: ticks.append(time.monotonic()))
    timer.start(5)
    for _ in range(3):
        kind, volume, _ = Call(runner, job).wait()
        assert kind == "done"
        assert np.array_equal(volume.voxels, views[1])
    timer.stop()
    longest = max(np.diff(ticks))
    with capsys.disabled():
        print(f"\nlongest block of the event loop: {1000 * longest:.0f} ms")
    assert longest < LONGEST_BLOCK
