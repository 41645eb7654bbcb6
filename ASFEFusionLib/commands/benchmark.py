"""Measure what a fusion costs on this machine: seconds a slice, a volume by stage, memory, growth, start-up.

`compact` (the shipped network) stands beside `paper` (the published one with random weights), by device and threads.
Seconds depend on the machine and on what else it does: compare ratios within one run. It takes some minutes and keeps
nothing but the figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
from pathlib import Path
from typing import Any

from .. import machine
from ..errors import FusionError
from ..fusion import versions
from . import benchmark_report as report
from .terminal import check_folder, positive, progress_bar, results

FILES = ("benchmark.json", "benchmark.md", "benchmark.png")
PARTS = ("slices", "profile", "volume", "growth", "startup")
NETWORKS = ("compact", "paper", "paper, as shipped")
SIDES, COUNTS, SIDE_OF_COUNTS = (64, 128, 256, 512, 1024), (1, 10, 60, 160, 600), 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, help=f"folder for {', '.join(FILES)} (needs matplotlib)")
    parser.add_argument(
        "--compare", type=Path, metavar="BEFORE.json", help="say what became of an earlier run's figures"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="(default: all)")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS[:2], help="of the slices")
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda", "mps"), help="(default: all that are there)")
    parser.add_argument("--threads", nargs="+", type=positive, help="of the CPU (default: 1, and as many as cores)")
    parser.add_argument("--side", type=positive, default=256, help="pixels of a slice (default: 256)")
    parser.add_argument(
        "--size", nargs=3, type=positive, default=(256, 256, 160), metavar=("I", "J", "K"), help="voxels"
    )
    parser.add_argument("--sides", nargs="+", type=positive, default=SIDES, help="of the slices in the growth")
    parser.add_argument("--slices", nargs="+", type=positive, default=COUNTS, help="of the volumes in the growth")
    parser.add_argument(
        "--rounds", type=positive, default=3, help="repetitions, of which the least counts (default: 3)"
    )
    parser.add_argument(
        "--full", action="store_true", help=f"volumes of the growth with {SIDES[2]} pixels a side, not {SIDE_OF_COUNTS}"
    )


def run(options: argparse.Namespace) -> None:
    before = _read(options.compare) if options.compare else None
    if options.output is not None:
        check_folder(options.output, [])
        if importlib.util.find_spec("matplotlib") is None:
            raise FusionError("extra_missing", package="matplotlib", extra="evaluate")
    with progress_bar("Measuring") as progress:
        found = _measure(options, progress)
    if before is not None:
        found["compared"] = report.compared(before, found)
    text = report.tables(found)
    print(text)
    if options.output is not None:
        with results(options.output, [], FILES) as parts:
            parts[FILES[0]].write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            parts[FILES[1]].write_text(text + "\n", encoding="utf-8")
            report.plot(found, parts[FILES[2]])
        print(f"Saved in {options.output}.")


def _measure(options: argparse.Namespace, progress: Any) -> dict:
    from ..research import benchmark

    progress(0.0, "devices")
    there = benchmark.devices()
    asked = options.devices or there
    cores = os.cpu_count() or 1
    threads = options.threads or sorted({1, cores})
    for device in asked:
        if device not in there:
            raise FusionError("device_missing", device=device)
    found = {"format": report.FORMAT, "machine": _machine(there), "load_before": _load()}
    jobs = [job for part in PARTS if part in options.parts for job in JOBS[part](options, asked, threads)]
    with benchmark.volumes(options.size if "volume" in options.parts else [8, 8, 4]) as folder:
        for n, (part, arguments) in enumerate(jobs):
            progress(n / len(jobs), f"{part} {' '.join(str(v) for v in arguments.values())}")
            more = {"folder": folder} if part == "volume" else {}
            found.setdefault(part, []).append(benchmark.measure(part, **arguments, **more))
    progress(1.0, "Done")
    found["load_after"] = _load()
    rows = [dict(row, peak_gb=None) for job in found.pop("slices", []) for row in job["rows"]]
    for alone in found.pop("alone", []):
        row = alone["rows"][0]
        for other in rows:
            if all(other[key] == row[key] for key in ("network", "device", "side")):
                other["peak_gb"] = alone["peak_gb"]
    if rows:
        found["slices"] = rows
        found["ratios"] = report.ratios(rows)
    return found


def _slices(options: argparse.Namespace, devices: list[str], threads: list[int]) -> list[tuple[str, dict]]:
    """The networks side by side, by device and threads; then each alone, for its peak of memory."""
    jobs, common = [], {"side": options.side}
    for device in devices:
        for count in threads if device == "cpu" else threads[:1]:
            chosen = {"networks": list(options.networks), "device": device, "rounds": options.rounds}
            jobs.append(("slices", {"threads": count, **chosen, **common}))
        for network in options.networks:
            alone = {"networks": [network], "device": device, "rounds": 0, "threads": min(threads)}
            jobs.append(("alone", alone | common))
    return jobs


def _volumes(options: argparse.Namespace, devices: list[str], threads: list[int]) -> list[tuple[str, dict]]:
    from ..research.benchmark import CASES

    # On a CPU the network takes by far the longest, and is no other for the second pair.
    jobs = []
    for device in devices:
        common = {"device": device, "rounds": options.rounds, "threads": max(threads)}
        for case, whole in zip(CASES, (True, device != "cpu"), strict=True):
            jobs.append(("volume", {"case": case, "network": whole, **common}))
    return jobs


def _growth(options: argparse.Namespace, devices: list[str], threads: list[int]) -> list[tuple[str, dict]]:
    side = SIDES[2] if options.full else min(SIDE_OF_COUNTS, options.side)
    sizes = dict.fromkeys([*((n, 1) for n in options.sides), *((side, n) for n in options.slices)])
    # On the fewest threads: what a second one gains is another question.
    return [("growth", {"side": n, "count": k, "device": devices[0], "threads": min(threads)}) for n, k in sizes]


def _startup(options: argparse.Namespace, devices: list[str], threads: list[int]) -> list[tuple[str, dict]]:
    common = {"rounds": options.rounds, "side": options.side}
    return [("startup", {"device": device, "threads": max(threads), **common}) for device in devices]


def _profile(options: argparse.Namespace, devices: list[str], threads: list[int]) -> list[tuple[str, dict]]:
    common = {"threads": min(threads), "side": options.side, "rounds": options.rounds}
    return [("profile", {"device": device, **common}) for device in devices]


JOBS = {"slices": _slices, "profile": _profile, "volume": _volumes, "growth": _growth, "startup": _startup}


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FusionError("file_missing", path=path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != report.FORMAT:
        raise FusionError("benchmark_other", path=path)
    return found


def _machine(devices: list[str]) -> dict:
    memory = machine.memory()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": None if memory is None else round(memory / 1e9, 1),
        "system": platform.system(),
        "devices": devices,
        "versions": versions(),
    }


def _processor() -> str:
    """Its name where Linux says it, else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _load() -> float | None:
    """Processes that wanted to run in the last minute; None where the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
