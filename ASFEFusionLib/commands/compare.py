"""Compare methods on the same pairs: our weights, the published network, classical fusions, images made elsewhere.

DIR_A and DIR_B hold same-named pictures of 8 bits or volumes (or are two files). Every method is scored on the same
slices and ranked by its mean rank over the metrics; a figure shows the same crop of sources and methods. Needs the
`evaluate` extra.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..engine import cpu_threads
from ..errors import FusionError
from ..settings import DEVICES
from .evaluate import add_case_arguments, check_packages, reading
from .terminal import check_folder, positive, progress_bar, results

if TYPE_CHECKING:
    from ..research.cases import Case
    from ..research.compare import Entry

FILES = ("scores.csv", "ranking.csv", "ranking.md", "crops.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="DIR_A", help="folder of pictures or volumes, or one file")
    parser.add_argument("second", type=Path, metavar="DIR_B", help="the same names")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="ours, AVG, MAX, LP, DWT, SWT, GFF (default: all)")
    parser.add_argument("--weights", help="of ours: a file, or the name of shipped ones")
    parser.add_argument("--paper-checkpoint", type=Path, metavar="FILE", help="the published network's: compared too")
    parser.add_argument(
        "--folder",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="images that another program fused; repeatable",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="of the networks")
    parser.add_argument("--show", nargs="+", metavar="IMAGE", help="names of the pairs in the figure")
    parser.add_argument(
        "--pairs", type=positive, default=3, help="so many pairs in the figure, evenly spread (default: 3)"
    )
    parser.add_argument(
        "--crop", type=int, nargs=3, metavar=("LEFT", "TOP", "SIDE"), help="pixels (default: most detail)"
    )
    add_case_arguments(parser)


def run(options: argparse.Namespace) -> None:
    check_packages()
    from ..research import cases, compare, evaluate, figures

    chosen = evaluate.choose_metrics(options.metrics)
    elsewhere = _folders(options.folder)
    places = [options.first, options.second, *elsewhere.values()]
    check_folder(options.output, places)
    how = reading(options)
    here, notes = _methods(options)
    made = [compare.Entry(name) for name in elsewhere]
    entries = [*here, *made]
    for name in elsewhere:
        if name in [entry.name for entry in here]:
            raise FusionError("method_twice", name=name)
    with progress_bar("Comparing") as progress, cpu_threads(options.threads):
        matched, step = cases.thinned(cases.match(places, options.only), options.every)
        pairs = []
        for image, files in matched:
            progress(0.0, f"Reading {image}")
            first, second, *fused = map(cases.load, files)
            pairs.append(cases.read_case(image, first, second, how))
            for entry, volume in zip(made, fused, strict=True):
                entry.images.append(cases.read_fused(volume, pairs[-1], how))
        evaluate.check_cases(pairs, chosen)
        shown = _shown(pairs, step, options)
        compare.run(entries, pairs, chosen, every=step, shown=shown, progress=progress)
        progress(1.0, "Done")
    units = {entry.name: evaluate.units(entry.rows, chosen) for entry in entries}
    kept = evaluate.defined(units[entries[0].name])
    head, lines = compare.ranking(entries, units, kept)
    text = f"{evaluate.counted(entries[0].rows)}. {notes}\n\n{compare.ranking_text(kept, lines)}"
    with results(options.output, places, FILES) as files:
        table = [[entry.name, *row.values()] for entry in entries for row in entry.rows]
        evaluate.write_csv(files["scores.csv"], ["method", "image", "slice", *chosen], table)
        evaluate.write_csv(files["ranking.csv"], head, lines)
        files["ranking.md"].write_text(text, encoding="utf-8")
        labels = [cases.title(options.first), cases.title(options.second), *(entry.name for entry in entries)]
        pictures = [
            figures.Shown(pairs[n].label(index), [*pairs[n].sources(index), *(e.pictures[place] for e in entries)])
            for place, (n, index) in enumerate(shown)
        ]
        figures.crops(pictures, labels, files["crops.png"], options.crop)
    print(text)
    print(f"Ranking, scores of each image and figure are in {options.output}.")


def _folders(given: list[str]) -> dict[str, Path]:
    """{name: folder} of NAME=DIR. Raises FusionError "setting_unknown", "method_twice"."""
    found: dict[str, Path] = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not (name and folder):
            raise FusionError("setting_unknown", name="--folder", value=text, choices="NAME=DIR")
        if name in found:
            raise FusionError("method_twice", name=name)
        found[name] = Path(folder)
    return found


def _methods(options: argparse.Namespace) -> tuple[list[Entry], str]:
    """The methods that fuse here, and which weights they have, in words. Raises FusionError."""
    from ..research import compare
    from ..research.baselines import BASELINES

    entries, weights = [], []
    for name in compare.choose_methods(options.methods):
        if name == compare.OURS:
            fuse, said = compare.network(options.weights, options.device)
            weights.append(f"{name}: weights {said}.")
        else:
            fuse = BASELINES[name]
        entries.append(compare.Entry(name, fuse))
    if options.paper_checkpoint is not None:
        fuse, said = compare.network(str(options.paper_checkpoint), options.device, published=True)
        weights.append(f"{compare.PAPER}: checkpoint {said}.")
        entries.append(compare.Entry(compare.PAPER, fuse))
    return entries, " ".join(weights)


def _shown(pairs: list[Case], step: int, options: argparse.Namespace) -> list[tuple[int, int]]:
    """(case, slice) of the figure: of the named cases the middle slice, else evenly spread. Raises FusionError."""
    from ..research.figures import check_crop

    judged = [case.both[::step] for case in pairs]
    if options.show:
        known = {case.name: n for n, case in enumerate(pairs)}
        for name in options.show:
            if name not in known:
                listed = ", ".join(list(known)[:10]) + (", ..." if len(known) > 10 else "")
                raise FusionError("setting_unknown", name="--show", value=name, choices=listed)
        shown = [(n, judged[n][len(judged[n]) // 2]) for n in sorted({known[name] for name in options.show})]
    else:
        every = [(n, index) for n, some in enumerate(judged) for index in some]
        count = min(options.pairs, len(every))
        shown = [every[(i + 1) * len(every) // (count + 1)] for i in range(count)]
    if options.crop is not None:
        for n, index in shown:
            check_crop(options.crop, pairs[n].a[index], pairs[n].name)
    return shown
