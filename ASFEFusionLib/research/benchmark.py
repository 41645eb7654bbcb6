"""What a fusion costs on this machine. Each part is measured in a process of its own: so the peak of memory is its own.

`measure(part, ...)` starts such a process and gives what it found, plain values; the functions of `PARTS` are what it
runs. Threads are given to every library by the environment, before it is loaded.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FusionError
from ..worker import THREADS
from .profile import profile

# What the process of one part runs; the current folder is no place for its modules.
PROGRAM = (
    "import sys; sys.path[:] = [sys.argv[1], *filter(None, sys.path)]; from ASFEFusionLib.research import benchmark; "
    "benchmark.serve(sys.argv[2])"
)
# Up to the first fused slice of a process: (256, 256), both volumes in memory.
FIRST_SLICE = """
import numpy as np
from ASFEFusionLib.fusion import fuse
from ASFEFusionLib.settings import FusionSettings
from ASFEFusionLib.volume import Volume
a, b = np.random.default_rng(0).integers(0, 1000, (2, 1, {side}, {side}), np.int16)
fuse(Volume(a, np.eye(4)), Volume(b, np.eye(4)), FusionSettings(device="{device}"))
"""
LIBRARY = Path(__file__).resolve().parents[2]
# Side of the matrices whose product tells what the machine can do.
MATRIX = 1024
# A phantom is sampled at these spacings (mm) and brought onto the asked size from there.
FIELD = (240.0, 240.0, 176.0)
CASES = ("CT-MR", "CT-PET")
# Stages of a run in their order, and what `FusionReport.seconds` calls them.
STAGES = {
    "read": (),
    "window": ("windows",),
    "weights": ("network",),
    "check": ("alignment",),
    "overlap": ("space",),
    "resample": ("resample", "cover"),
    "network": (),
    "blend": ("fuse",),
    "colour": ("colour",),
    "write": (),
}
# The weights are read once, and bring torch with them.
NOT_COUNTED = ("weights", "network")


def measure(part: str, threads: int | None = None, **options: Any) -> dict:
    """What `PARTS[part](**options)` gives in a process of its own with so many threads (None: as many as cores).

    Raises FusionError "run_failed".
    """
    count = str(threads or os.cpu_count() or 1)
    environment = {**os.environ, **dict.fromkeys(THREADS, count)}
    order = json.dumps({"part": part, "threads": int(count), **options})
    arguments = [sys.executable, "-c", PROGRAM, str(LIBRARY), order]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        raise FusionError("run_failed", why=why)
    return json.loads(done.stdout.splitlines()[-1])


def serve(order: str) -> None:
    """Runs one part and prints what it found, and the process's peak, as a line of JSON."""
    options = json.loads(order)
    found = PARTS[options.pop("part")](**options)
    print(json.dumps(found | {"peak_gb": peak()}))


def peak() -> float | None:
    """Most memory (GB) that this process ever held resident; None where the system does not say.

    Linux: VmHWM, which begins anew with each program; what getrusage says there begins with the parent's.
    """
    try:
        if sys.platform.startswith("linux"):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e9
        if os.name == "nt":
            return _windows_peak()
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    except (OSError, StopIteration, ImportError):
        return None


def _windows_peak() -> float | None:
    class Counters(ctypes.Structure):
        """PROCESS_MEMORY_COUNTERS of psapi.h; the peak is the first of its sizes."""

        _fields_ = (
            ("length", ctypes.c_uint32),
            ("faults", ctypes.c_uint32),
            ("peak", ctypes.c_size_t),
            ("others", ctypes.c_size_t * 7),
        )

    counters = Counters(length=ctypes.sizeof(Counters))
    kernel = ctypes.windll.kernel32
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    asked = ctypes.c_void_p(kernel.GetCurrentProcess()), ctypes.byref(counters), counters.length
    return counters.peak / 1e9 if kernel.K32GetProcessMemoryInfo(*asked) else None


def devices() -> list[str]:
    """Of cpu, cuda and mps those that are there."""
    return measure("devices")["devices"]


def _devices(threads: int) -> dict:
    from ..engine import pick_device

    found = []
    for name in ("cpu", "cuda", "mps"):
        try:
            found.append(pick_device(name))
        except FusionError as error:
            if error.code != "device_missing":
                raise
    return {"devices": found}


# ---------------------------------------------------------------------------------------------------------------------
# Slices


def slices(threads: int, networks: list[str], device: str, side: int, rounds: int) -> dict:
    """Seconds a slice of the `networks`, in turn in each of the `rounds`, so that what else the machine does meets all.

    "compact": as a fusion runs it, numpy to numpy, in batches as it takes them. "paper": the published network with
    random weights (seeded), as such a network is usually written: one slice, logits whole. "paper, as shipped": the
    same, its attention in blocks and its convolutions in the faster layout. One network: `peak_gb` is its own.
    """
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ready = {name: NETWORKS[name](device, side) for name in networks}
    seconds, rates = {name: [] for name in networks}, []
    for _ in range(rounds + 1):  # the first round is the first slice
        rates.append(matrix_rate(device))
        for name, network in ready.items():
            # A small network several times: its least is then as sure as the large one's.
            times = 1 if name.startswith("paper") or not seconds[name] else 3
            for _ in range(times):
                began = time.perf_counter()
                network.run()
                seconds[name].append((time.perf_counter() - began) / network.batch)
    rows = []
    for name, network in ready.items():
        steady = seconds[name][1:] or seconds[name]
        row = {"network": name, "device": device, "threads": threads, "side": side}
        row |= {"batch": network.batch, "first_s": seconds[name][0] * network.batch, "steady_s": min(steady)}
        row |= {"median_s": statistics.median(steady), "gflop": network.gflop}
        row["matmul_gflops"] = max(rates)
        row["share"] = network.gflop / min(steady) / max(rates)
        rows.append(row)
    return {"rows": rows}


class _Ready:
    """A network, with what it is run on: `run()` fuses `batch` slices and returns when they are there."""

    def __init__(self, run: Callable[[], object], batch: int, gflop: float) -> None:
        self.run, self.batch, self.gflop = run, batch, gflop


def _compact(device: str, side: int) -> _Ready:
    from ..engine import Engine
    from ..network import load

    engine = Engine(None, device)
    batch = engine.batch(side, side)
    a, b = np.random.default_rng(0).random((2, batch, side, side), np.float32)
    return _Ready(lambda: engine.fuse(a, b), batch, gflop(load(None, "cpu"), side))


def _paper(device: str, side: int, plain: bool = True) -> _Ready:
    import torch

    from ..network import PAPER, ASFEFusion

    net = ASFEFusion(PAPER).eval().requires_grad_(False)
    if not plain:
        for part in (net.encoder, net.decoder):
            part.to(memory_format=torch.channels_last)
    with torch.device("meta"):  # counted without the work
        operations = gflop(ASFEFusion(PAPER).eval().requires_grad_(False), side)
    net.to(device)
    a, b = (torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(n)).to(device) for n in (0, 1))

    def run() -> object:
        with torch.inference_mode(), _whole_logits(plain):
            return net(a, b).cpu()

    return _Ready(run, 1, operations)


@contextmanager
def _whole_logits(plain: bool) -> Iterator[None]:
    """SFEF's attention as a formula: pixels times slots held whole."""
    from ..network import sfef

    ours = sfef.attend
    if plain:
        sfef.attend = lambda q, k, v: (q @ k.transpose(1, 2)).softmax(-1) @ v
    try:
        yield
    finally:
        sfef.attend = ours


NETWORKS = {
    "compact": _compact,
    "paper": _paper,
    "paper, as shipped": lambda device, side: _paper(device, side, plain=False),
}


def gflop(net: Any, side: int) -> float:
    """Billions of operations of one slice, as torch counts them: convolutions, products of matrices and attention."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    a, b = torch.empty(2, 1, 1, side, side)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter, _whole_logits(True):
        net(a, b)
    return counter.get_total_flops() / 1e9


def matrix_rate(device: str) -> float:
    """GFLOP/s of a product of two float32 matrices, the best of some."""
    import torch

    a, b = torch.rand(2, MATRIX, MATRIX, device=device)
    best = np.inf
    for _ in range(4):
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # which waits for a GPU
        best = min(best, time.perf_counter() - began)
    return 2 * MATRIX**3 / best / 1e9


# ---------------------------------------------------------------------------------------------------------------------
# Volumes


def prepare(threads: int, folder: str, size: list[int]) -> dict:
    """Writes the phantom as uncompressed files: CT and PET upright, MR turned by 4 degrees; PET of 4.8 mm voxels."""
    import SimpleITK as sitk

    from .. import phantom, space
    from ..volume import Volume, to_sitk

    rng = np.random.default_rng(0)
    coarse = [max(4, round(n * step / 4.8)) for n, step in zip(size, np.array(FIELD) / size, strict=True)]
    for modality, shape, degrees in (("CT", size, 0), ("MR", size, 4), ("PET", coarse, 0)):
        values = space.resample(phantom.head(modality, noise=False), _grid(shape, degrees))
        values += rng.normal(0, 0.01 * values.std(), values.shape).astype(np.float32)
        voxels = values if modality == "PET" else np.rint(values).astype(np.int16)
        image = to_sitk(Volume(voxels, _grid(shape, degrees).matrix))
        sitk.WriteImage(image, str(Path(folder, f"{modality}.nii")), False)
    return {}


def _grid(size: list[int], degrees: float) -> Any:
    """A lattice over `FIELD` about the phantom's middle, turned about z and half as much about x."""
    from .. import grids, phantom

    matrix = np.eye(4)
    a, b = np.radians(degrees), np.radians(degrees / 2)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    matrix[:3, :3] = about_z @ about_x * (np.array(FIELD) / size)
    matrix[:3, 3] = np.array(phantom.HEAD_CENTRE) - matrix[:3, :3] @ ((np.array(size) - 1) / 2)
    return grids.Grid(tuple(size), matrix)


def volume(threads: int, folder: str, case: str, *, device: str, rounds: int, network: bool) -> dict:
    """A whole volume from uncompressed file to file, once with the network (unless not `network`) and `rounds` without.

    `first_s`: stages of the first run, of a cold process. `least_s`: the least of each stage in all runs, of which
    the first alone has the network (in the others the mean of both volumes stands for it) and judges how the two lie.
    """
    from .. import files, fusion
    from ..engine import Engine
    from ..settings import FusionSettings

    second = case.split("-")[1]
    settings = FusionSettings(colour="hot" if second == "PET" else None, device=device, threads=threads)
    suffix = ".nrrd" if second == "PET" else ".nii"
    spent, original = [0.0], Engine.fuse

    def timed(engine: Engine, a: np.ndarray, b: np.ndarray, *more: Any) -> np.ndarray:
        began = time.perf_counter()
        fused = original(engine, a, b, *more) if network and not runs else (a + b) / 2
        spent[0] += time.perf_counter() - began
        return fused

    runs: list[dict] = []
    Engine.fuse = timed
    try:
        for n in range(rounds + 1):
            settings.check = n == 0  # seconds each time
            spent[0] = 0.0
            marks = [time.perf_counter()]
            pair = [files.read(Path(folder, f"{modality}.nii")) for modality in ("CT", second)]
            pair[0].modality, pair[1].modality = "CT", second
            marks.append(time.perf_counter())
            fused, report = fusion.fuse(*pair, settings)
            marks.append(time.perf_counter())
            files.write(fused, Path(folder, f"fused{suffix}"))
            marks.append(time.perf_counter())
            runs.append(_stages(report.seconds, spent[0], marks))
    finally:
        Engine.fuse = original
    least = {name: min(run[name] for run in runs) for name in STAGES}
    least["check"] = runs[0]["check"]
    least["network"] = runs[0]["network"] = runs[0]["network"] if network else None
    found = {"case": case, "size": list(fused.size_ijk), "device": device, "threads": threads}
    found |= {"first_s": runs[0], "least_s": least}
    found["volumes_gb"] = sum(v.voxels.nbytes for v in (*pair, fused)) / 1e9
    found["all_but_network_s"] = sum(seconds for name, seconds in least.items() if name not in NOT_COUNTED)
    return found


def _stages(seconds: dict[str, float], network: float, marks: list[float]) -> dict[str, float]:
    """Of one run: `seconds` of its report, those in the network, and the times before and after read, fuse, write."""
    found = {name: sum(seconds.get(key, 0.0) for key in keys) for name, keys in STAGES.items()}
    found |= {"read": marks[1] - marks[0], "network": network, "write": marks[3] - marks[2]}
    found["blend"] = max(0.0, found["blend"] - network)
    return found


def growth(threads: int, side: int, count: int, device: str) -> dict:
    """Seconds of a fusion of `count` slices of `side` pixels in memory, with all but file and check, and its peak."""
    from ..fusion import fuse
    from ..settings import FusionSettings
    from ..volume import Volume

    settings = FusionSettings(device=device, threads=threads, check=False)
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.05), -np.sin(0.05)], [np.sin(0.05), np.cos(0.05)]]
    pair = [Volume(_waves(side, count, n), matrix, modality="MR") for n, matrix in enumerate((np.eye(4), turned))]
    few = [Volume(v.voxels[:1], v.ijk_to_physical, modality="MR") for v in pair]
    fuse(*few, settings)  # weights, and what libraries do once
    times = []
    while len(times) < 2 or (sum(times) < 0.5 and len(times) < 10):
        if times and times[0] > 5:
            break
        began = time.perf_counter()
        fuse(*pair, settings)
        times.append(time.perf_counter() - began)
    return {"side": side, "slices": count, "seconds": min(times), "volumes_gb": 6 * side * side * count / 1e9}


def _waves(side: int, count: int, seed: int) -> np.ndarray:
    """Something to see at any size, int16 (count, side, side), without much memory."""
    x = np.linspace(0, 20 + 5 * seed, side)
    plane = 400 * np.sin(x) * np.cos(0.7 * x)[:, None]
    voxels = np.empty((count, side, side), np.int16)
    for k in range(count):
        voxels[k] = plane + 400 * np.cos(0.1 * k + x)
    return voxels


# ---------------------------------------------------------------------------------------------------------------------
# Start


def startup(threads: int, rounds: int, side: int, device: str) -> dict:
    """Least seconds, of so many fresh processes each: of the import, and from the start of Python to a fused slice."""
    imports, loaded = [], set()
    for _ in range(rounds):
        code = "import sys, time; t = time.perf_counter(); import ASFEFusionLib; t = time.perf_counter() - t; "
        found = _python(code + "print(t, *{'torch', 'SimpleITK', 'matplotlib'} & set(sys.modules))").split()
        imports.append(float(found[0]))
        loaded |= set(found[1:])
    whole = []
    for _ in range(rounds):
        began = time.perf_counter()
        _python(FIRST_SLICE.format(side=side, device=device) + "import os; os._exit(0)")
        whole.append(time.perf_counter() - began)
    parts = {}
    for name, code in (("python", "pass"), ("numpy", "import numpy"), ("torch", "import torch")):
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            _python(code)
            seconds.append(time.perf_counter() - began)
        parts[name] = min(seconds)
    found = {"import_s": min(imports), "import_loads": sorted(loaded), "first_slice_s": min(whole), "python_s": parts}
    return found | {"side": side}


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=LIBRARY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FusionError("run_failed", why=(done.stderr.strip().splitlines() or [str(done.returncode)])[-1])
    return done.stdout


PARTS = {
    "devices": _devices,
    "slices": slices,
    "profile": profile,
    "alone": slices,
    "prepare": prepare,
    "volume": volume,
    "growth": growth,
    "startup": startup,
}


@contextmanager
def volumes(size: list[int]) -> Iterator[str]:
    """A folder with the files of `prepare`, for as long as the block goes on."""
    with tempfile.TemporaryDirectory() as folder:
        measure("prepare", folder=folder, size=list(size))
        yield folder
