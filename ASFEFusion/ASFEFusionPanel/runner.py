"""A fusion in a process of its own, over qt.QProcess: Slicer's event loop goes on, and outlives what goes wrong there.

Slicer's idle event loop holds Python's lock, so that a thread would stall. `ASFEFusionLib.worker` says what the two
processes tell each other, `ASFEFusionLib.exchange` how the volumes pass between them.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress

import qt

from ASFEFusionLib import exchange, worker
from ASFEFusionLib.errors import FusionError

# Milliseconds that a cancel waits for the worker's own end of the run, and a stop for the worker's own end.
CANCEL_PATIENCE, STOP_PATIENCE, KILL_PATIENCE = 700, 300, 500
KEPT_OUTPUT = 4096  # characters of what the worker says beside the protocol


class Runner:
    """One run at a time, in a worker process that is kept for the next one.

    `temporaryFolder`: where the folder of the volumes in passing is made. `program`: a Python that has numpy, SimpleITK
    and torch; default: PythonSlicer. `threads`: most CPU threads of the worker; default: all cores but one.
    """

    def __init__(self, temporaryFolder: str, program: str | None = None, threads: int | None = None) -> None:
        self.temporaryFolder = str(temporaryFolder)
        self.program = program or shutil.which("PythonSlicer") or "PythonSlicer"
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.threads = threads or max(1, cores - 1)
        self._child = None  # the worker that takes the next run
        self._children = set()  # that one, and those that are ending
        self._run, self._lastId = None, 0
        self._tasks = []  # calls for the event loop's coming turns
        self._pieces, self._patience, self._turn = qt.QTimer(), qt.QTimer(), qt.QTimer()
        functions = (self._sendPiece, self._losePatience, self._takeTurn)
        for timer, function in zip((self._pieces, self._patience, self._turn), functions, strict=True):
            timer.setSingleShot(True)
            timer.connect("timeout()", function)

    @property
    def busy(self) -> bool:
        """True from `start` until one of its last three callbacks is called."""
        return self._run is not None

    def start(
        self, job: exchange.Job, onProgress: Callable, onDone: Callable, onError: Callable, onCancelled: Callable
    ) -> None:
        """Fuses; returns at once. Raises FusionError "run_busy" while a run is under way.

        The callbacks come from the event loop: `onProgress(fraction, code, facts, secondsLeft)` many times, with a key
        of `errors.STEPS` and None where the time is not known; then one of `onDone(volume, report)` (voxels read-only;
        report: `FusionReport.to_dict()`), `onError(code, facts, details)` (a key of `errors.MESSAGES`) and
        `onCancelled()`, in which the next run may be started. None comes after `stop`. The voxels of the job are read
        while they are sent, some event loop turns long: they must not change until the first progress.
        """
        if self.busy:
            raise FusionError("run_busy")
        self._lastId += 1
        self._run = _Run(self._lastId, job, onProgress, onDone, onError, onCancelled)
        self._pieces.start(0)

    def cancel(self) -> None:
        """Ends the run within a second, by ending the worker if it must be; nothing if there is none."""
        run = self._run
        if run is None or run.over or run.cancelling:
            return
        run.cancelling = True
        if run.job is not None:
            self._finish(run, run.onCancelled)
        else:
            run.child.send({"cancel": run.identity})
            self._patience.start(CANCEL_PATIENCE)

    def warm(self, weights: str | None = None, device: str = "auto") -> None:
        """Starts the worker and lets it load torch and weights ahead of the first run. What fails, fails in the run."""
        with suppress(FusionError):
            self._worker().send({"warm": {"weights": weights, "device": device}})

    def stop(self) -> None:
        """Ends the worker within a second, whatever it is at, and removes all files. Any number of times."""
        self._close(self._run)
        self._child = self._run = None
        for child in list(self._children):
            child.end()

    def _worker(self) -> _Child:
        """The worker, started anew if there is none. Raises FusionError "exchange_failed"."""
        if self._child is not None and not os.path.isdir(self._child.folder):
            self._child.kill()  # a cleaner of temporary folders has come by
            self._child = None
        if self._child is None or not self._child.alive:
            self._child = _Child(self.program, self.threads, self.temporaryFolder, self)
            self._children.add(self._child)
        return self._child

    def _sendPiece(self) -> None:
        run = self._run
        if run is None or run.over or run.job is None:
            return
        try:
            if run.child is None:
                run.child = self._worker()
                run.folder = os.path.join(run.child.folder, str(run.identity))
                run.sender = exchange.send(run.job, run.folder)
            next(run.sender)
            self._pieces.start(0)
        except StopIteration:
            run.job = run.sender = None
            run.child.send({"run": run.identity, "folder": run.folder})
        except Exception as error:
            if run.child is None or os.path.isdir(run.child.folder):
                self._fail(run, error)
            else:  # the worker removed it on its way out: its end is what is told
                run.child.kill()

    def _losePatience(self) -> None:
        run = self._run
        if run is not None and run.cancelling and not run.over:
            run.child.kill()
            self._child = None
            self._finish(run, run.onCancelled)

    def onMessage(self, child: _Child, message: dict) -> None:
        run = self._run
        if "leaving" in message and child is self._child:
            self._child = None
        if run is None or run.over or run.child is not child or message.get("run") != run.identity:
            return
        if "progress" in message:
            if not run.cancelling:
                run.onProgress(message["progress"], message["step"], message["facts"], message["left"])
        elif run.cancelling or "cancelled" in message:
            self._finish(run, run.onCancelled)
        elif "done" in message:
            try:
                self._finish(run, run.onDone, *exchange.receive_result(run.folder))
            except Exception as error:
                self._fail(run, error)
        elif "error" in message:
            self._finish(run, run.onError, message["error"], message["facts"], message["text"])
        else:
            why, how = {"why": message["failed"]}, message["details"]
            self._finish(run, lambda: run.onError("run_failed", why, how + child.notes))  # what is noted by then

    def onEnd(self, child: _Child, code: int | None) -> None:
        """`code` is None if the worker could not be started."""
        self._children.discard(child)
        run = self._run
        if run is None or run.over or run.child is not child:
            return
        if run.cancelling:
            self._finish(run, run.onCancelled)
        elif code is None:
            self._finish(run, run.onError, "child_missing", {"program": self.program}, child.notes)
        else:
            self._finish(run, run.onError, "child_died", {"code": code}, child.notes)

    def _fail(self, run: _Run, error: Exception) -> None:
        """For what goes wrong on this side."""
        if isinstance(error, MemoryError):
            error = FusionError("memory_out", device="this machine")
        elif not isinstance(error, FusionError):
            error = FusionError("run_failed", why=repr(error))
        self._finish(run, run.onError, error.code, error.facts, traceback.format_exc())

    def _finish(self, run: _Run, callback: Callable[..., None], *arguments: object) -> None:
        """Ends the run; the callback comes from the event loop itself, out of every slot of the process."""
        run.over = True
        self._close(run)

        def deliver() -> None:
            if self._run is run:
                self._run = None
                callback(*arguments)

        self.later(deliver)

    def _close(self, run: _Run | None) -> None:
        self._pieces.stop()
        self._patience.stop()
        if run is not None and run.sender is not None:
            run.sender.close()
        if run is not None and run.folder is not None:
            exchange.remove_folder(run.folder)

    def later(self, task: Callable[[], None]) -> None:
        """Calls it from the event loop. (Slicer's own QTimer.singleShot keeps what it calls until Slicer ends.)"""
        self._tasks.append(task)
        self._turn.start(0)

    def _takeTurn(self) -> None:
        task = self._tasks.pop(0)
        if self._tasks:
            self._turn.start(0)
        task()


class _Run:
    """What the runner knows of a run."""

    def __init__(self, identity: int, job: exchange.Job, *callbacks: Callable[..., None]) -> None:
        self.identity, self.job = identity, job  # the job until it is sent
        self.onProgress, self.onDone, self.onError, self.onCancelled = callbacks
        self.child = self.folder = self.sender = None
        self.cancelling = self.over = False


class _Child:
    """A worker process and its exchange folder, which goes when the process has ended.

    The `runner` gets each line of the protocol by `onMessage(child, message)`, and its end by `onEnd(child, code)`.
    """

    def __init__(self, program: str, threads: int, parent: str, runner: Runner) -> None:
        self.folder = exchange.make_folder(parent)
        self.runner = runner
        self.pid = None  # of Python: PythonSlicer starts it as a process of its own
        self.output, self.notes = b"", ""  # the beginning of a line; the last that was said beside the protocol
        self.process = process = qt.QProcess()
        process.connect("readyReadStandardOutput()", self._onOutput)
        process.connect("readyReadStandardError()", self._onNotes)
        process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        process.connect("errorOccurred(QProcess::ProcessError)", self._onErrorOccurred)
        process.start(program, worker.command(threads, self.folder))

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.state() != qt.QProcess.NotRunning

    def send(self, command: dict) -> None:
        if self.alive:
            self.process.write(worker.line(command))

    def kill(self) -> None:
        if self.alive and self.pid is not None:
            with suppress(OSError):
                os.kill(self.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        if self.alive:
            self.process.kill()

    def end(self) -> None:
        """Ends it within a second; blocks as long."""
        process = self.process
        self.send({"quit": True})
        if self.alive and not process.waitForFinished(STOP_PATIENCE):
            self.kill()
            process.waitForFinished(KILL_PATIENCE)
        self._over(0)
        exchange.remove_folder(self.folder)

    def _onOutput(self) -> None:
        if self.process is None:
            return
        answers, strays, self.output = worker.split(self.output + self.process.readAllStandardOutput().data())
        self._note(strays)
        for answer in answers:
            self.pid = answer.get("pid", self.pid)
            try:
                self.runner.onMessage(self, answer)
            except Exception:  # of a callback: the next answer counts all the same
                logging.exception("ASFEFusion: the progress of a run could not be shown")

    def _onNotes(self) -> None:
        if self.process is not None:
            self._note(self.process.readAllStandardError().data())

    def _note(self, output: bytes) -> None:
        self.notes = (self.notes + output.decode(errors="replace"))[-KEPT_OUTPUT:]

    def _onFinished(self, code: int, status: object) -> None:
        self._onOutput()
        self._onNotes()
        self._over(code)

    def _onErrorOccurred(self, error: object) -> None:
        if error == qt.QProcess.FailedToStart:
            self._over(None)

    def _over(self, code: int | None) -> None:
        process, self.process = self.process, None
        if process is None:
            return

        def tell() -> None:
            nonlocal process
            process = None  # not before: this may be one of its own slots
            self.runner.onEnd(self, code)
            exchange.remove_folder(self.folder)

        self.runner.later(tell)
