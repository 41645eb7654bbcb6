"""What `benchmark` found, as tables, as a picture, and beside an earlier run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FORMAT = "ASFEFusion benchmark 1"
DEVICES = ("cpu", "cuda", "mps")
SLICES_NOTE = """
First: the first batch of a fresh process. Steady: the least of the later ones, a slice. Machine's GFLOP/s: a product of
two float32 matrices in the same process; share: what the network reaches of it. GFLOP: convolutions, products of
matrices and attention, not Fourier transforms. `paper`: random weights, run straightforwardly. Blank: not there."""
# What an earlier run is compared in: seconds and memory, the less the better.
LOWER = ("first_s", "steady_s", "peak_gb", "all_but_network_s", "seconds", "import_s", "first_slice_s")


def ratios(rows: list[dict]) -> list[dict]:
    """How many times as long as `compact` each other network takes, on the same device and threads in the same run."""
    found = []
    for row in rows:
        for other in rows:
            same = all(row[key] == other[key] for key in ("device", "threads", "side"))
            if same and row["network"] == "compact" != other["network"]:
                ratio = other["steady_s"] / row["steady_s"]
                kind = {key: row[key] for key in ("device", "threads", "side")}
                found.append(kind | {"network": other["network"], "over_compact": ratio})
    return found


def compared(before: dict, after: dict) -> list[dict]:
    """Every figure that both runs have: its name, before, after, and before over after."""
    old = _figures(before)
    return [
        {"figure": name, "before": old[name], "after": value, "times_better": old[name] / value}
        for name, value in _figures(after).items()
        if old.get(name) and value
    ]


def _figures(found: dict) -> dict[str, float]:
    """All of a run's figures that should be low, by a name that says what was measured."""
    figures = {}
    for part, keys in (
        ("slices", ("network", "device", "threads", "side")),
        ("volume", ("case", "device", "threads", "size")),
        ("growth", ("side", "slices")),
        ("startup", ("side",)),
    ):
        for row in found.get(part, []):
            name = ", ".join([part, *(f"{key} {_plain(row.get(key))}" for key in keys)])
            # The process that measures the start only starts others: its own memory says nothing.
            told = [
                key for key in LOWER if isinstance(row.get(key), float | int) and (part, key) != ("startup", "peak_gb")
            ]
            figures |= {f"{name}: {key}": row[key] for key in told}
            stages = row.get("least_s", {})
            figures |= {f"{name}: {stage}": seconds for stage, seconds in stages.items() if seconds}
    return figures


def _plain(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


def number(value: float | None, digits: int = 3) -> str:
    """With so many digits that count; blank for what was not measured."""
    if value is None:
        return ""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(3, *(len(line[n]) for line in lines)) for n in range(len(lines[0]))]
    padded = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines]
    padded.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(padded)


def tables(found: dict) -> str:
    """All that was found, in Markdown."""
    parts = [_machine(found)]
    parts += [make(found) for part, make in TABLES.items() if found.get(part)]
    return "\n\n".join(parts)


def _machine(found: dict) -> str:
    about = found["machine"]
    names = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"# Benchmark\n\n{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, {about['system']}; "
        f"devices: {', '.join(about['devices'])}. {names}.\nLoad before and after (processes that want to run): "
        f"{found['load_before']}, {found['load_after']}. Where others run too, seconds are longer than they need\n"
        "be: compare ratios within one run."
    )


def _slices(found: dict) -> str:
    rows = found["slices"]
    lines = []
    for row in rows:
        cells = [row["network"], row["device"], row["threads"], row["batch"]]
        keys = ("first_s", "steady_s", "median_s", "peak_gb", "gflop", "matmul_gflops")
        lines.append([*cells, *(number(row[key]) for key in keys), f"{100 * row['share']:.0f} %"])
    blank = [device for device in DEVICES if device not in {row["device"] for row in rows}]
    lines += [["compact", device, *[""] * 9] for device in blank]
    head = ["network", "device", "threads", "batch", "first (s)", "steady (s)", "median (s)", "peak (GB)"]
    head += ["GFLOP", "machine's GFLOP/s", "share"]
    side = rows[0]["side"]
    text = f"## Seconds a slice, {side} x {side}\n\n{_table(head, lines)}\n"
    text += SLICES_NOTE
    for ratio in found.get("ratios", []):
        name = f"{ratio['network']} over compact, {ratio['device']}, {_threads(ratio['threads'])}"
        text += f"\n\n**{name}: {number(ratio['over_compact'])} times**"
    return text


def _profile(found: dict) -> str:
    texts = []
    for job in found["profile"]:
        lines = [
            [row["part"], number(1e3 * row["seconds"]), f"{100 * row['seconds'] / job['whole_s']:.0f} %"]
            for row in job["rows"]
        ]
        lines.append(["all", number(1e3 * job["whole_s"]), ""])
        texts.append(
            f"## Where a slice's time goes, {job['device']}, {_threads(job['threads'])}\n\n"
            + _table(["part of compact", "ms", "share"], lines)
        )
    return "\n\n".join(texts)


def _volumes(found: dict) -> str:
    rows = found["volume"]
    heads = [f"{row['case']}, {row['device']}" for row in rows]
    head = ["seconds", *(f"{name}, {kind}" for name in heads for kind in ("first", "least"))]
    lines = [
        [stage, *(number(row[kind][stage]) for row in rows for kind in ("first_s", "least_s"))]
        for stage in rows[0]["least_s"]
    ]
    sums = [number(row["all_but_network_s"]) for row in rows]
    lines.append(["all but network and weights", *(cell for total in sums for cell in ("", total))])
    for name in ("peak_gb", "volumes_gb"):
        label = "peak of memory (GB)" if name == "peak_gb" else "of it the volumes in and out (GB)"
        lines.append([label, *(cell for row in rows for cell in ("", number(row[name])))])
    size, threads = _plain(rows[0]["size"]), rows[0]["threads"]
    return (
        f"## A volume from uncompressed file to file, {size}, {threads} threads\n\n{_table(head, lines)}\n\n"
        "First: a cold process. Least: of several runs in it. Network left blank: not run, as it is that of the first\n"
        "pair. CT-MR: MR turned by 4 degrees, linear, NIfTI. CT-PET: voxels of 4.8 mm, cubic, in colour, packed NRRD."
    )


def _growth(found: dict) -> str:
    lines = []
    for row in found["growth"]:
        voxels = row["side"] ** 2 * row["slices"]
        cells = [row["side"], row["slices"], number(row["seconds"]), number(1e6 * row["seconds"] / voxels)]
        lines.append([*cells, number(row["peak_gb"]), number(row["volumes_gb"])])
    head = ["side", "slices", "seconds", "seconds a million voxels", "peak (GB)", "of it volumes (GB)"]
    return f"## Growth\n\n{_table(head, lines)}"


def _startup(found: dict) -> str:
    lines = []
    for row in found["startup"]:
        parts = row["python_s"]
        loads = ", ".join(row["import_loads"]) or "none of torch, SimpleITK, matplotlib"
        lines.append([number(row["import_s"]), loads, number(row["first_slice_s"]), number(parts["torch"])])
    head = ["`import ASFEFusionLib` (s)", "it loads", "Python's start to the first fused slice (s)"]
    return f"## Start\n\n{_table([*head, 'of it `import torch` alone (s)'], lines)}"


def _compared(found: dict) -> str:
    lines = [
        [row["figure"], number(row["before"]), number(row["after"]), number(row["times_better"])]
        for row in found["compared"]
    ]
    return f"## Before and after\n\n{_table(['figure', 'before', 'after', 'before / after'], lines)}"


TABLES = {
    "slices": _slices,
    "profile": _profile,
    "volume": _volumes,
    "growth": _growth,
    "startup": _startup,
    "compared": _compared,
}


def plot(found: dict, path: Path) -> None:
    """One PNG: bars of seconds a slice and of a volume's stages; growth with side and slices beside straight lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    draw = {"slices": _bars, "volume": _stages}
    for panel, (part, make) in zip(panels[0], draw.items(), strict=True):
        if found.get(part):
            make(panel, found[part])
        else:
            panel.set_axis_off()
    rows = found.get("growth", [])
    _lines(panels[1, 0], [row for row in rows if row["slices"] == 1], "side", "pixels a side, one slice", 2)
    many = [row for row in rows if row["slices"] > 1]
    sides = {row["side"] for row in many}
    several = [row for row in rows if row["side"] in sides]
    _lines(panels[1, 1], several, "slices", f"slices of {max(sides, default=0)} pixels a side", 1)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _bars(panel: Any, rows: list[dict]) -> None:
    places = sorted({(row["device"], row["threads"]) for row in rows})
    networks = list(dict.fromkeys(row["network"] for row in rows))
    width = 0.8 / len(networks)
    for n, network in enumerate(networks):
        mine = [row for row in rows if row["network"] == network]
        at = [places.index((row["device"], row["threads"])) + (n - (len(networks) - 1) / 2) * width for row in mine]
        bars = panel.bar(at, [row["steady_s"] for row in mine], width, label=network)
        panel.bar_label(bars, [number(row["steady_s"], 2) for row in mine], fontsize="small")
    panel.set_yscale("log")
    panel.margins(y=0.15)
    panel.set_xticks(range(len(places)), [f"{device}, {_threads(count)}" for device, count in places])
    panel.set_title(f"seconds a slice, {rows[0]['side']} x {rows[0]['side']} (logarithmic)", fontsize="medium")
    panel.legend(fontsize="small")


def _stages(panel: Any, rows: list[dict]) -> None:
    names = [stage for stage in rows[0]["least_s"] if stage != "weights"]
    height = 0.8 / len(rows)
    for n, row in enumerate(rows):
        at = [k + (n - (len(rows) - 1) / 2) * height for k in range(len(names))]
        values = [row["least_s"][name] or 0 for name in names]
        bars = panel.barh(at, values, height, label=f"{row['case']}, {row['device']}")
        panel.bar_label(bars, [number(row["least_s"][name], 2) for name in names], fontsize="small", padding=2)
    panel.set_yticks(range(len(names)), names)
    panel.invert_yaxis()
    panel.set_xscale("symlog", linthresh=0.1)
    panel.margins(x=0.15)
    panel.set_title(f"seconds of a volume, {_plain(rows[0]['size'])}, by stage", fontsize="medium")
    panel.legend(fontsize="small", loc="lower right")


def _lines(panel: Any, rows: list[dict], key: str, label: str, power: int) -> None:
    """Seconds and memory over `key`, and what grows with its `power` through the largest point."""
    rows = sorted(rows, key=lambda row: row[key])
    if not rows:
        panel.set_axis_off()
        return
    x = [row[key] for row in rows]
    panel.plot(x, [row["seconds"] for row in rows], "o-", label="seconds")
    last = rows[-1]
    panel.plot(x, [last["seconds"] * (n / last[key]) ** power for n in x], ":", color="grey", label="as the voxels")
    if all(row["peak_gb"] is not None for row in rows):
        panel.plot(x, [row["peak_gb"] for row in rows], "s--", label="peak of memory (GB)")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xticks(x, [str(n) for n in x], minor=False)
    panel.minorticks_off()
    panel.set_xlabel(label)
    panel.legend(fontsize="small")
