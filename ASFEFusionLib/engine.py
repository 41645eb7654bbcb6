"""Slices through the network: which device, how many at a time. Knows torch, nothing of volumes."""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .errors import FusionError

if TYPE_CHECKING:
    import torch

# torch.OutOfMemoryError came with it.
OLDEST_TORCH = "2.5"
# Pixels of one batch. On a CPU more at a time gains nothing and delays a cancel.
BATCH_PIXELS = {"cpu": 2 * 256 * 256, "cuda": 32 * 256 * 256, "mps": 8 * 256 * 256}


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


class Engine:
    """A loaded network on a device. `weights_name` and `weights_hash` say which."""

    def __init__(self, weights: str | None, device: str) -> None:
        self.device = pick_device(device)
        from .network.weights import find

        path = find(weights)
        self.net = _load(str(path), os.stat(path).st_mtime_ns, self.device)
        self.weights_name, self.weights_hash = self.net.weights_name, self.net.weights_hash

    def batch(self, height: int, width: int) -> int:
        """Slices of this size that go through at a time."""
        return max(1, BATCH_PIXELS[self.device] // (height * width))

    def fuse(self, a: np.ndarray, b: np.ndarray, tick: Callable[[], None] = lambda: None) -> np.ndarray:
        """(n, h, w) float32 slices in [0, 1] -> fused, the same. `tick` is called many times on the way and may raise.

        Raises FusionError "memory_out".
        """
        torch = _torch()
        with torch.inference_mode(), _heartbeat(self.net, tick):
            try:
                first, second = (torch.from_numpy(np.ascontiguousarray(x)).unsqueeze(1).to(self.device) for x in (a, b))
                return self.net(first, second).squeeze(1).float().cpu().numpy()
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise FusionError("memory_out", device=self.device) from error
            except RuntimeError as error:
                if "not enough memory" in str(error) or "can't allocate memory" in str(error):
                    raise FusionError("memory_out", device=self.device) from error
                raise


@functools.lru_cache(maxsize=2)
def _load(path: str, stamp: int, device: str) -> torch.nn.Module:
    """Keeps the last networks, so that a folder of pictures loads its weights once; a changed file is read anew."""
    from .network import load

    return load(path, device)


@contextmanager
def _heartbeat(net: torch.nn.Module, tick: Callable[[], None]) -> Iterator[None]:
    """Calls `tick` after each layer of the network: a large slice alone takes longer than a user waits for a sign."""
    owner = threading.get_ident()  # the network is shared: another thread's slices are not this one's sign

    def after(*_: object) -> None:
        if threading.get_ident() == owner:
            tick()

    layers = [module for module in net.modules() if not any(module.children())]
    handles = [layer.register_forward_hook(after) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
