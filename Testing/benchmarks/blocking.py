"""How long a run from the panel holds up Slicer's main thread, and how fast Cancel is: 256 x 256 x 100, CT + MR.

    python Testing/benchmarks/blocking.py [--slices 100] [--cancels 10] [--output FILE.json]

Over the test host, with one CPU thread less for the run than there are cores. The first run loads torch; the second one
counts. "Node update" is the writing of the result into the scene, apart from the rest.
"""

import argparse
import json
import platform
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--slices", type=int, default=100)
    parser.add_argument("--cancels", type=int, default=10)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result = measure(options.slices, options.cancels)
    print(json.dumps(result, indent=2))
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(slices, cancels):
    """Seconds of the longest turns of the event loop, and of each cancel."""
    import host
    import numpy as np

    application = host.start()
    widget = host.openModule(host.loadModule(ROOT / "ASFEFusion" / "ASFEFusion.py"))
    import slicer

    from ASFEFusionLib import grids, phantom, scene, space
    from ASFEFusionLib.volume import Volume

    matrix = np.diag([0.9, 0.9, 2.0, 1.0])
    matrix[:3, 3] = [-115, -130, -60]
    grid = grids.Grid((256, 256, slices), matrix)
    for modality in ("CT", "MR"):
        head = phantom.head(modality, noise=False)
        voxels = np.rint(space.resample(head, grid)).astype(np.int16)
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", modality)
        scene.put_voxels(node, Volume(voxels, matrix, modality=modality))
        setattr(widget._parameterNode, "firstVolume" if modality == "CT" else "secondVolume", node)
    widget._parameterNode.secondModality = "MR"
    logic, ui = widget.logic, widget.ui
    updates = []
    finish = logic.finish

    def timed(*arguments):
        began = time.perf_counter()
        node = finish(*arguments)
        updates.append(time.perf_counter() - began)
        return node

    logic.finish = timed

    def turns(until, limit=300.0):
        began, longest = time.perf_counter(), 0.0
        while not until() and time.perf_counter() - began < limit:
            start, count = time.perf_counter(), len(updates)
            application.processEvents()
            spent = time.perf_counter() - start
            longest = max(longest, spent - sum(updates[count:]))
            time.sleep(0.002)
        return longest, time.perf_counter() - began

    runs = []
    for _ in range(2):
        start = time.perf_counter()
        ui.applyButton.click()
        click = time.perf_counter() - start
        longest, seconds = turns(lambda: not logic.busy)
        runs.append({"seconds": seconds, "click": click, "longest_turn": longest, "node_update": updates[-1]})
        assert ui.resultLabel.text.startswith("Fused"), ui.resultLabel.text
    random.seed(0)
    spent = []
    for _ in range(cancels):
        ui.applyButton.click()
        turns(lambda: False, random.uniform(0.0, 0.8 * runs[1]["seconds"]))
        if logic.busy:
            ui.applyButton.click()
            spent.append(turns(lambda: not logic.busy)[1])
    widget.cleanup()
    return {
        "volume": [256, 256, slices],
        "machine": {"processor": platform.machine(), "python": platform.python_version(), "threads": logic_threads()},
        "first_run": rounded(runs[0]),
        "second_run": rounded(runs[1]),
        "cancel_seconds": {"count": len(spent), "longest": round(max(spent), 3)} if spent else None,
        "problems": host.problems,
    }


def logic_threads():
    """Threads that a run may have."""
    import os

    return max(1, len(os.sched_getaffinity(0)) - 1) if hasattr(os, "sched_getaffinity") else None


def rounded(values):
    return {name: round(value, 3) for name, value in values.items()}


if __name__ == "__main__":
    main()
