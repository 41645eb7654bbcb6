"""Where the time of a slice goes, by part of the network, for `benchmark`. No torch until it is measured."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np


def profile(threads: int, device: str, side: int, rounds: int) -> dict:
    """Seconds of one slice by part of our network as a fusion runs it, `rows`, and of all of it, `whole_s`.

    Medians of many slices. Each part is timed by hooks around it; what lies between the parts is "the rest".
    """
    import torch

    from ..engine import Engine

    torch.set_num_threads(threads)
    engine = Engine(None, device)
    a, b = np.random.default_rng(0).random((2, 1, side, side), np.float32)
    wait = {"cuda": torch.cuda.synchronize, "mps": getattr(torch.mps, "synchronize", None)}.get(device) or (
        lambda: None
    )
    clock, spent = [], {}

    def begin(*_: object) -> None:
        wait()
        clock.append(time.perf_counter())

    def end(name: str) -> None:
        wait()
        spent.setdefault(name, []).append(time.perf_counter() - clock.pop())

    hooks = []
    for name, modules in _parts(engine.net).items():
        for module in modules:
            hooks.append(module.register_forward_pre_hook(begin))
            hooks.append(module.register_forward_hook(lambda *_, name=name: end(name)))
    whole, rows = [], {}
    try:
        for _ in range(5 * rounds + 1):
            spent.clear()
            began = time.perf_counter()
            engine.fuse(a, b)
            whole.append(time.perf_counter() - began)
            for name, seconds in spent.items():
                rows.setdefault(name, []).append(sum(seconds))
    finally:
        for hook in hooks:
            hook.remove()
    # The first slice warms everything up.
    medians = {name: statistics.median(seconds[1:]) for name, seconds in rows.items()}
    total = statistics.median(whole[1:])
    medians["the rest"] = max(0.0, total - sum(medians.values()))
    found = {"device": device, "threads": threads, "side": side, "whole_s": total}
    return found | {"rows": [{"part": name, "seconds": seconds} for name, seconds in medians.items()]}


def _parts(net: Any) -> dict[str, list]:
    """The modules that a profile tells apart, none within another, in the order of the data."""
    from ..network.aff import AFF
    from ..network.casf import CASF
    from ..network.decoder import BlendHead, UpPath
    from ..network.encoder import ConvBlock
    from ..network.fast_aff import FastAFF
    from ..network.fast_refinement import FastRefinement
    from ..network.fusion_level import PlainMerge
    from ..network.inference import FastHead, FastUpPath
    from ..network.refinement import Refinement
    from ..network.sfef import SFEF

    parts = {}
    for name, module in net.encoder.named_modules():
        if isinstance(module, ConvBlock):
            level = int(name.split(".")[1])
            parts.setdefault(f"encoder, side / {2**level}" if level else "encoder, full side", []).append(module)
    for name, kinds in (
        ("merge, side / 2", PlainMerge),
        ("CASF", CASF),
        ("AFF", (AFF, FastAFF)),
        ("SFEF", SFEF),
        ("decoder", (UpPath, FastUpPath)),
        ("last block and head", (FastHead, BlendHead)),
        ("refinement", (Refinement, FastRefinement)),
    ):
        parts[name] = [module for module in net.modules() if isinstance(module, kinds)]
    return {name: modules for name, modules in parts.items() if modules}
