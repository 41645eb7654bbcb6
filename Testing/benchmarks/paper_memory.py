"""Peak memory and seconds of the published network, from the start of Python to one fused slice.

    python Testing/benchmarks/paper_memory.py [--sides 256 512] [--threads 1] [--output FILE.json]

A checkpoint with the published layout and random values is written to a temporary folder (0.7 GB), loaded and run by a
fresh process for each line of the table. "plain": as a network is usually written and loaded: tensors of its own, into
which those of the file are copied, and attention that holds its logits between pixels and slots whole; "as shipped":
`ASFEFusionLib.network.load`. Peak: `getrusage`, the most that was ever resident; the starting process is small, as its
own peak is inherited.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT)]
WAYS = {"plain": "--plain", "as shipped": "--shipped"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 512], help="pixels a side of the slices")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    for option in ("--fill", *WAYS.values()):  # what the fresh processes do
        parser.add_argument(option, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fill:
        fill(options.fill)
    elif options.plain or options.shipped:
        print(json.dumps(one(options.plain or options.shipped, options.sides[0], options.threads, options.plain)))
    else:
        compare(options)


def compare(options):
    """Runs each way at each size, and prints and writes what came out."""
    result = {"machine": platform.machine(), "system": platform.system(), "threads": options.threads, "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "published.pt")
        call("--fill", checkpoint)
        checksums = {}
        for side in options.sides:
            for way, option in WAYS.items():
                found = json.loads(call(option, checkpoint, "--sides", side, "--threads", options.threads))
                checksums.setdefault(side, []).append(found.pop("values"))
                result["runs"].append({"way": way, "side": side} | found)
                print(
                    f"{way:10} {side} x {side}: peak {found['peak_gb']:.2f} GB, import {found['import_s']:.1f} s, "
                    f"loading {found['load_s']:.1f} s, slice {found['slice_s']:.1f} s",
                    flush=True,
                )
            plain, ours = checksums[side]
            apart = max(abs(p - q) for p, q in zip(plain, ours, strict=True))
            result["runs"][-1]["greatest_difference"] = apart
            print(f"           greatest difference of 4096 pixels: {apart:.1e}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def call(*arguments):
    run = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True
    )
    return run.stdout


def fill(path):
    import published_plain
    import torch

    torch.save({k: published_plain.filled(n, k, s) for n, (k, s) in enumerate(published_plain.layout().items())}, path)


def one(checkpoint, side, threads, plain):
    """Loads and runs: seconds, the peak, and some pixels of the result."""
    began = time.perf_counter()
    import torch

    from ASFEFusionLib.network import load, sfef

    torch.set_num_threads(threads)
    imported = time.perf_counter()
    if plain:
        net = load_plainly(checkpoint)
        sfef.attend = lambda q, k, v: (q @ k.transpose(1, 2)).softmax(-1) @ v
    else:
        net = load(checkpoint)
    loaded = time.perf_counter()
    a, b = torch.rand(2, 1, 1, side, side, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        fused = net(a, b)
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "peak_gb": peak / 1e9,
        "import_s": imported - began,
        "load_s": loaded - imported,
        "slice_s": done - loaded,
        "values": fused.flatten()[:: max(1, side * side // 4096)][:4096].tolist(),
    }


def load_plainly(path):
    import torch

    from ASFEFusionLib.network import PAPER, ASFEFusion
    from ASFEFusionLib.network.published import their_name

    net = ASFEFusion(PAPER)
    state = torch.load(path, weights_only=True)
    net.load_state_dict({name: state[their_name(name)] for name in net.state_dict()})
    return net.eval().requires_grad_(False)


if __name__ == "__main__":
    main()
