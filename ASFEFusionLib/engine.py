"""Slices through the network: which device, how many at a time, side by side. Knows torch, nothing of volumes."""

from __future__ import annotations

import functools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from . import machine
from .errors import FusionError
from .settings import Notice

if TYPE_CHECKING:
    import torch

    from .network.frame import Spans

    # Slices of both sources on a card, and where they show something.
    Sent = tuple[list[torch.Tensor], list[Spans]]

# torch.OutOfMemoryError came with it.
OLDEST_TORCH = "2.5"
# The most pixels of one batch. On a CPU more at a time gains nothing and delays a cancel.
BATCH_PIXELS = {"cpu": 256 * 256, "cuda": 32 * 256 * 256, "mps": 8 * 256 * 256}
# Bytes that the network takes for a pixel of a slice, with a reserve; measured: 600 to 1,200 in float32.
BYTES_PER_PIXEL = 1500
# The part of a card's free memory that a batch may take: others use the card, too, and convolutions want work space.
SHARE = 0.6
# Batches that are handed over at once: so that a card copies one while it computes another; and for each of several
# threads, so that none waits long for the last.
AHEAD = 4
AHEAD_EACH = 2
# Slices of more pixels go through one after another, by all threads: side by side their memory would add up.
SIDE_BY_SIDE = 1024 * 1024
# And those side by side take no more than this part of the machine's memory, however many threads there are.
PART = 0.25
# The network continues a slice by its ends to at least this side (pixels): thinner ones take as much.
LEAST_SIDE = 32
# Seconds between two calls of `tick` while other threads work.
INTERVAL = 0.05

Tick = Callable[[], None]


def pick_device(name: str) -> str:
    """ "auto" -> the best there is; else the name itself. Raises FusionError "torch_missing", "device_missing"."""
    torch = _torch()
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if available[device])
    if not available[name]:
        raise FusionError("device_missing", device=name)
    return name


@functools.lru_cache(maxsize=1)
def _torch() -> object:
    """The torch module. Raises FusionError "torch_missing", "torch_broken", "torch_old", "torch_numpy"."""
    # Large pages for large tensors (Linux; torch looks at its first allocation): a third less time for 1024 x 1024.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise FusionError("torch_missing") from error
        raise FusionError("torch_broken", why=str(error)) from error
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # half an install
        raise FusionError("torch_broken", why=str(error).splitlines()[0] if str(error) else repr(error)) from error
    version = getattr(torch, "__version__", "of an unknown version")
    numbers = re.findall(r"\d+", str(version))[:2]
    if [int(n) for n in numbers] < [int(n) for n in OLDEST_TORCH.split(".")]:
        raise FusionError("torch_old", version=version, needed=OLDEST_TORCH)
    try:
        torch.from_numpy(np.zeros(1, np.float32)).numpy()
    except (RuntimeError, TypeError) as error:  # built for another major version of numpy
        raise FusionError("torch_numpy", torch=version, numpy=np.__version__) from error
    return torch


class Card(Protocol):
    """A device beside the CPU, with the network on it. A test puts its own in the place of `card`."""

    def room(self) -> int | None:
        """Bytes that are free on it; None: not known."""

    def send(self, a: np.ndarray, b: np.ndarray) -> object:
        """Starts copying (n, h, w) float32 slices there."""

    def run(self, sent: object) -> object:
        """Starts the network on what was sent."""

    def fetch(self, running: object) -> np.ndarray:
        """Waits for what `run` has begun: the fused slices (n, h, w) float32."""

    def clear(self) -> None:
        """Gives back memory that is kept for later."""


class Engine:
    """A loaded network on a device. `weights_name` and `weights_hash` say which.

    `notices`: what is to be said of the run.
    """

    def __init__(self, weights: str | None, device: str) -> None:
        device = pick_device(device)
        from .network.weights import find

        self._path = find(weights)
        self.notices: list[Notice] = []
        self._most = sys.maxsize  # slices at a time; fewer once memory was short
        self._first: float | None = None
        self._later = (0.0, 0)  # seconds and slices
        try:
            self._use(device)
        except Exception as error:
            if device == "cpu" or not out_of_memory(error):
                raise
            self._leave_card(device)
        self.weights_name, self.weights_hash = self.net.weights_name, self.net.weights_hash

    def _use(self, device: str) -> None:
        self.net = _load(str(self._path), os.stat(self._path).st_mtime_ns, device)
        self.device = device
        self._card = None if device == "cpu" else card(device, self.net)

    def _leave_card(self, device: str) -> None:
        self.net = self._card = None
        _load.cache_clear()
        self.notices = [Notice("memory_cpu", {"device": device})]
        self._use("cpu")

    @property
    def slice_seconds(self) -> dict[str, float]:
        """ "first": until the first batch had come, "later": for each slice after it; those that there were."""
        seconds, slices = self._later
        found = {} if self._first is None else {"first": self._first}
        return found | ({"later": seconds / slices} if slices else {})

    def batch(self, height: int, width: int) -> int:
        """Slices of this size to hand over at a time: what keeps the device busy."""
        pixels = _pixels(height, width)
        if self._card:
            return AHEAD * self._at_once(pixels)
        workers = self._workers(pixels)
        return (AHEAD_EACH * workers if workers > 1 else 1) * self._at_once(pixels)

    def _at_once(self, pixels: int) -> int:
        """Slices of one batch."""
        most, room = BATCH_PIXELS[self.device], self._card and self._card.room()
        if room is not None:
            most = min(most, int(SHARE * room / BYTES_PER_PIXEL))
        return min(max(1, most // pixels), self._most)

    def _workers(self, pixels: int) -> int:
        """Threads for slices side by side."""
        if pixels > SIDE_BY_SIDE:
            return 1
        threads, there = _torch().get_num_threads(), machine.memory()
        if there is None:
            return threads
        each = BYTES_PER_PIXEL * max(pixels, BATCH_PIXELS["cpu"])
        return max(1, min(threads, int(PART * there / each)))

    def fuse(self, a: np.ndarray, b: np.ndarray, tick: Tick = lambda: None) -> np.ndarray:
        """(n, h, w) float32 slices in [0, 1] -> fused, the same. `tick` is called many times on the way and may raise.

        A card whose memory is short gets fewer slices at a time, and at last the CPU goes on; `notices` say so. Raises
        FusionError "memory_out".
        """
        fused = np.empty(a.shape, np.float32)
        began, came = time.perf_counter(), []
        try:
            done = self._on_card(a, b, fused, tick, came) if self._card else 0
            if done < len(a):
                self._on_cpu(a[done:], b[done:], fused[done:], tick, came)
        except Exception as error:
            if out_of_memory(error):
                raise FusionError("memory_out", device=self.device) from error
            raise
        self._note_time(began, came)
        return fused

    def _note_time(self, began: float, came: list[tuple[float, int]]) -> None:
        """`came`: when, and how many slices."""
        if came and self._first is None:
            (first, _), *came = came
            self._first, began = first - began, first
        if came:
            seconds, slices = self._later
            self._later = seconds + came[-1][0] - began, slices + sum(n for _, n in came)

    def _on_card(
        self, a: np.ndarray, b: np.ndarray, fused: np.ndarray, tick: Tick, came: list[tuple[float, int]]
    ) -> int:
        """Slices through the card, until all are done or it has no memory even for one: how many are done."""
        size = self._at_once(_pixels(*a.shape[1:]))
        begun = done = 0  # slices that the card has been given to fuse, and those that have come back
        sent = running = None
        while done < len(a):
            short = False
            try:
                launched = None
                if begun < len(a):
                    part = slice(begun, begun + size)
                    with _beating(tick):
                        sent = self._card.send(a[part], b[part]) if sent is None else sent
                        launched = part, self._card.run(sent)
                    begun = min(part.stop, len(a))
                # While that runs the next ones go there, and those before come back.
                sent = self._card.send(a[begun:][:size], b[begun:][:size]) if begun < len(a) else None
                if running is not None:
                    part, result = running
                    fused[part] = self._card.fetch(result)
                    came.append((time.perf_counter(), len(fused[part])))
                    done = min(part.stop, len(a))
                running = launched
            except Exception as error:
                if not out_of_memory(error):
                    raise
                short = True
            if short:  # outside of the handler: the error holds on to what was there
                sent = running = launched = result = None
                self._card.clear()
                if size == 1:
                    self._leave_card(self.device)
                    break
                size = self._most = (size + 1) // 2
                self.notices = [Notice("memory_batch", {"device": self.device, "count": size})]
                begun = done
            tick()
        return done

    def _on_cpu(
        self, a: np.ndarray, b: np.ndarray, fused: np.ndarray, tick: Tick, came: list[tuple[float, int]]
    ) -> None:
        """Slices through the CPU: where there are threads and slices enough, side by side."""
        torch = _torch()
        size = self._at_once(_pixels(*a.shape[1:]))
        parts = [slice(start, start + size) for start in range(0, len(a), size)]

        def run(part: slice, tick: Tick) -> None:
            with torch.inference_mode(), _beating(tick):
                fused[part] = self.net(*pair_of(a[part], b[part])).squeeze(1).float().numpy()
            came.append((time.perf_counter(), len(fused[part])))

        workers = min(self._workers(_pixels(*a.shape[1:])), len(parts))
        if workers == 1:
            for part in parts:
                run(part, tick)
        else:
            self._side_by_side(run, parts, workers, tick)

    def _side_by_side(self, run: Callable[[slice, Tick], None], parts: list[slice], workers: int, tick: Tick) -> None:
        """All parts by threads that share torch's own, mostly one each: that gives more than to share each layer."""
        stop, left = threading.Event(), iter(parts)

        def check() -> None:
            if stop.is_set():
                raise _Stopped

        def work() -> None:
            while not stop.is_set() and (part := next(left, None)):
                run(part, check)

        with cpu_threads(max(1, _torch().get_num_threads() // workers)), ThreadPoolExecutor(workers) as pool:
            futures = [pool.submit(work) for _ in range(workers)]
            try:
                while wait(futures, INTERVAL, FIRST_EXCEPTION).not_done and not any(map(_failed, futures)):
                    tick()
            finally:
                stop.set()
        failed = next((future for future in futures if _failed(future)), None)
        if failed is not None:
            failed.result()


def _pixels(height: int, width: int) -> int:
    return max(height, LEAST_SIDE) * max(width, LEAST_SIDE)


class _Stopped(Exception):  # noqa: N818 - no error: another thread failed, or the caller gave up
    """Ends a thread's slice."""


def _failed(future: Future) -> bool:
    return future.done() and future.exception() is not None and not isinstance(future.exception(), _Stopped)


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error of torch or Python says: its kinds and words are many."""
    if isinstance(error, (_torch().OutOfMemoryError, MemoryError)):
        return True
    words = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


@functools.lru_cache(maxsize=2)
def _load(path: str, stamp: int, device: str) -> torch.nn.Module:
    """Keeps the last networks, so that a folder of pictures loads its weights once; a changed file is read anew."""
    torch = _torch()
    from .network import load
    from .network.inference import prepared

    # Once a block of this size was freed, glibc keeps up to twice as much for the next one, instead of handing it back
    # and having it zeroed anew by the system for each layer: a tenth of the time of a slice.
    torch.empty(31 << 20, dtype=torch.uint8)
    net = prepared(load(path), device).to(device)
    for layer in [module for module in net.modules() if not any(module.children())]:
        layer.register_forward_hook(after)
    return net


_beat = threading.local()  # the network is shared: another thread's slices are not this one's sign


def after(*_: object) -> None:
    """After each layer of the network: a large slice alone takes longer than a user waits for a sign."""
    getattr(_beat, "tick", lambda: None)()


@contextmanager
def _beating(tick: Tick) -> Iterator[None]:
    """`tick` is called after each layer that this thread runs."""
    _beat.tick = tick
    try:
        yield
    finally:
        del _beat.tick


def card(device: str, net: torch.nn.Module) -> Card:
    """The card "cuda" or "mps"."""
    return Cuda(net) if device == "cuda" else Plain(device, net)


def pair_of(a: np.ndarray, b: np.ndarray) -> list[torch.Tensor]:
    """Slices (n, h, w) as the network takes them: (n, 1, h, w) each."""
    return [_torch().from_numpy(np.ascontiguousarray(x)).unsqueeze(1) for x in (a, b)]


def spans_of(a: torch.Tensor, b: torch.Tensor) -> list[Spans]:
    """Of slices that are still here: once they are on a card, to know them would be to wait for it."""
    from .network.frame import spans

    return spans(a, b)


class Plain:
    """A card by means that every one has: each step waits for its end."""

    def __init__(self, device: str, net: torch.nn.Module) -> None:
        self.device, self.net = device, net

    def room(self) -> int | None:
        return None

    def send(self, a: np.ndarray, b: np.ndarray) -> Sent:
        pair = pair_of(a, b)
        return [x.to(self.device) for x in pair], spans_of(*pair)

    def run(self, sent: Sent) -> torch.Tensor:
        pair, where = sent
        with _torch().inference_mode():
            return self.net(*pair, where).squeeze(1).float()

    def fetch(self, running: torch.Tensor) -> np.ndarray:
        return running.cpu().numpy()

    def clear(self) -> None:
        if self.device == "mps":
            _torch().mps.empty_cache()


class Cuda:
    """A CUDA card: copies go through pinned memory in streams of their own, both ways beside the network."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.net, self.cuda = net, _torch().cuda
        self.there, self.back = self.cuda.Stream(), self.cuda.Stream()

    def room(self) -> int | None:
        free, _ = self.cuda.mem_get_info()
        return free + self.cuda.memory_reserved() - self.cuda.memory_allocated()

    def send(self, a: np.ndarray, b: np.ndarray) -> tuple[Sent, torch.cuda.Event]:
        pair = pair_of(a, b)
        with self.cuda.stream(self.there):
            there = [x.pin_memory().to("cuda", non_blocking=True) for x in pair]
            arrived = self.there.record_event()
        return (there, spans_of(*pair)), arrived

    def run(self, sent: tuple[Sent, torch.cuda.Event]) -> tuple[torch.Tensor, torch.cuda.Event]:
        torch = _torch()
        (pair, where), arrived = sent
        stream = self.cuda.current_stream()
        stream.wait_event(arrived)
        for x in pair:
            x.record_stream(stream)  # else its memory could be given away while the network reads it
        # Without TF32, which would round the slice itself.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            fused = self.net(*pair, where).squeeze(1).float()
        return fused, stream.record_event()

    def fetch(self, running: tuple[torch.Tensor, torch.cuda.Event]) -> np.ndarray:
        fused, ready = running
        with self.cuda.stream(self.back):
            self.back.wait_event(ready)
            host = _torch().empty(fused.shape, dtype=fused.dtype, pin_memory=True).copy_(fused, non_blocking=True)
            fused.record_stream(self.back)
        self.back.synchronize()
        return host.numpy()

    def clear(self) -> None:
        self.cuda.synchronize()
        self.cuda.empty_cache()


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Torch's CPU threads for the length of a fusion; None leaves them."""
    if count is None:
        yield
        return
    torch = _torch()
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, os.cpu_count() or 1))  # far more than there are bring torch down
    try:
        yield
    finally:
        torch.set_num_threads(before)
