"""The process that fuses for Slicer: commands as JSON lines in on stdin, answers as JSON lines out on stdout.

In: {"run": id, "folder": path of a job}, {"cancel": id}, {"quit": true}, {"warm": true} or {"warm": {"weights": name,
"device": name}}. Out: {"ready": true, "pid": n}; {"run": id, "progress": 0 to 1, "step": code, "facts": {}, "left":
seconds or null}, and at last {"run": id, ...} with one of: "done" (folder of the result), "error" (a code) with "facts"
and "text", "cancelled", "failed" (a summary) with "details". "leaving" in that: the GPU is lost to this process, which
ends.

The end of stdin, as when Slicer has crashed, ends the process at once and removes the exchange folder. Slicer itself
has no part in here, nor Qt.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import json
import math
import os
import queue
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from typing import Any

# numpy's BLAS, torch and ITK read these when they are loaded: nothing of them may be imported above.
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
NICENESS = 5
# Where memory runs out, Linux shall end this process and not Slicer (-1000 to 1000).
OOM_SCORE = "/proc/self/oom_score_adj", "500"
# Seconds for files that another thread still writes, when the exchange folder goes.
PATIENCE = 0.5
# No time left is told before so many seconds and so much of the whole; smoothed over so many seconds.
KNOWN_AFTER, KNOWN_FROM, SMOOTHING = 1.0, 0.03, 2.0
# Without the current folder, in which Python would look for modules too.
PROGRAM = (
    "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; from ASFEFusionLib import worker; worker.main()"
)


def command(threads: int, exchange: str) -> list[str]:
    """What to start Python with."""
    library = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return ["-c", PROGRAM, library, "--threads", str(threads), "--exchange", exchange]


def line(message: dict) -> bytes:
    """A command or an answer as it goes through the pipe; what JSON lacks as `exchange.plain` has it."""
    from .exchange import plain

    return json.dumps(message, default=plain).encode() + b"\n"


def split(output: bytes) -> tuple[list[dict], bytes, bytes]:
    """The answers in what has come out, the lines that are none, and the beginning of the next line."""
    *lines, rest = output.split(b"\n")
    answers, strays = [], b""
    for text in lines:
        try:
            answers.append(dict(json.loads(text)))
        except (ValueError, TypeError):
            strays += text + b"\n"
    return answers, strays, rest


def main(arguments: list[str] | None = None) -> None:
    """Serves until stdin ends: `FOLDER_OF_THE_LIBRARY --threads N --exchange FOLDER`. Does not return."""
    parser = argparse.ArgumentParser(prog="worker")
    parser.add_argument("library")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--exchange", required=True)
    options = parser.parse_args(arguments)

    for name in THREADS:
        os.environ[name] = str(options.threads)
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    with suppress(OSError), open(OOM_SCORE[0], "w") as file:
        file.write(OOM_SCORE[1])
    faulthandler.enable()  # a crash inside a library says where, on stderr
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in Slicer's terminal is Slicer's to answer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print goes to stderr
    sys.stdout = sys.stderr
    # On Windows, whatever looks at stdin while a thread waits on it waits too, and libraries do when they are loaded.
    orders = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    Worker(options.exchange, options.threads, orders, answers).serve()


class Worker:
    """Runs one job after the other in the main thread; another thread takes the commands."""

    def __init__(self, exchange: str, threads: int, orders: Any, answers: Any) -> None:
        self.exchange, self.threads, self.orders, self.answers = exchange, threads, orders, answers
        self.commands: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self.cancelled: set[str] = set()
        self.leaving = False

    def serve(self) -> None:
        """Does not return."""
        importlib.import_module("ASFEFusionLib.exchange")  # in full, before another thread may need it to leave
        signal.signal(signal.SIGTERM, lambda *_: self.leave())
        threading.Thread(target=self.listen, daemon=True).start()
        self.say(ready=True, pid=os.getpid())
        while True:
            order = self.commands.get()
            if "run" in order:
                self.run(order["run"], order.get("folder"))
            elif "warm" in order:
                warm(order["warm"])

    def listen(self) -> None:
        """Takes the commands; the end of them is the end of the process."""
        try:
            for text in self.orders:
                for order in split(text)[0]:
                    if "quit" in order:
                        return
                    if "cancel" in order:
                        self.cancelled.add(str(order["cancel"]))
                    self.commands.put(order)
        finally:
            self.leave()

    def leave(self) -> None:
        """Ends the process, whatever it is at, and leaves no file of the patient behind."""
        self.leaving = True  # a result that is being written ends too
        try:
            from .exchange import remove_folder

            remove_folder(self.exchange, PATIENCE)
        finally:
            os._exit(0)

    def say(self, **answer: object) -> None:
        try:
            self.answers.write(line(answer))
            self.answers.flush()
        except OSError:  # nobody listens any more
            self.leave()

    def run(self, identity: object, folder: str) -> None:
        """One job, and its answers; whatever goes wrong, the next can come."""
        from .errors import Cancelled, FusionError

        try:
            self.fuse(identity, folder)
            answer = {"done": folder}
        except Cancelled:
            answer = {"cancelled": True}
        except FusionError as error:
            answer = {"error": error.code, "facts": error.facts, "text": str(error)}
        except MemoryError:
            error = FusionError("memory_out", device="this machine")
            answer = {"error": error.code, "facts": error.facts, "text": str(error)}
        except Exception as error:
            summary = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
            answer = {"failed": summary, "details": traceback.format_exc()}
        # Here the arrays are gone: the folder may be removed, and what was kept for the next slices given back.
        intact = release()
        self.cancelled.discard(str(identity))
        self.say(run=identity, **answer, **({} if intact else {"leaving": True}))
        if not intact:
            os._exit(1)  # the result's files are the caller's to fetch first

    def fuse(self, identity: object, folder: str) -> None:
        """Raises Cancelled, FusionError, and whatever damaged files and libraries raise."""
        from .alignment.place import look
        from .errors import Cancelled
        from .exchange import receive, send_result
        from .fusion import fuse

        time_left = TimeLeft()

        def progress(fraction: float, step: Any) -> None:
            left = time_left.update(fraction, step.code, time.monotonic())
            self.say(run=identity, progress=fraction, step=step.code, facts=step.facts, left=left)

        def cancelled() -> bool:
            return self.leaving or str(identity) in self.cancelled

        if cancelled():
            raise Cancelled
        job = receive(folder)
        settings = replace(job.settings, threads=min(job.settings.threads or self.threads, self.threads))
        work = fuse if job.fused else look
        volume, report = work(job.first, job.second, settings, progress, cancelled, displacement=job.displacement)
        for _ in send_result(folder, volume, report):
            if cancelled():
                raise Cancelled


class TimeLeft:
    """Seconds left of a run: as it has gone on since the present step began, whose pace differs from the others'."""

    def __init__(self) -> None:
        self.step = self.begun = self.told = None

    def update(self, fraction: float, step: str, now: float) -> float | None:
        """`fraction` of the whole, at `now` (s); None until it can be known."""
        if step != self.step:
            self.step, self.begun, self.told = step, (now, fraction), None
        seconds, part = now - self.begun[0], fraction - self.begun[1]
        if seconds < KNOWN_AFTER or part < KNOWN_FROM:
            return None
        left = (1 - fraction) * seconds / part
        if self.told is not None:
            before, at = self.told
            weight = math.exp((at - now) / SMOOTHING)
            left = weight * max(0.0, before - (now - at)) + (1 - weight) * left
        self.told = (left, now)
        return left


def warm(choice: object) -> None:
    """Loads torch and weights ahead, the default ones unless `choice` names others; a run says what is wrong."""
    try:
        from .engine import Engine

        choice = choice if isinstance(choice, dict) else {}
        Engine(choice.get("weights"), choice.get("device") or "auto")
    except Exception as error:
        print(f"not warmed: {error!r}", file=sys.stderr)


def release() -> bool:
    """Gives the memory of a run back, the GPU's too, which Slicer draws with. False where it no longer answers."""
    gc.collect()
    torch = sys.modules.get("torch")
    try:
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        if torch is not None and torch.backends.mps.is_available():
            torch.mps.empty_cache()
    except RuntimeError as error:  # after a fault there every later call of this process fails
        print(f"the GPU is lost: {error}", file=sys.stderr)
        return False
    except AttributeError:  # half an install: the run has said so
        pass
    return True
