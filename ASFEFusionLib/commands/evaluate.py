"""Score fused images against their sources: all metrics, their spread, and a paired test of two methods.

DIR_A, DIR_B and DIR_FUSED hold same-named pictures of 8 bits or volumes; three files (or DICOM folders for A and B)
are one case. Needs the `evaluate` extra. Volumes are windowed as in a fusion and scored slice by slice on the grid of
the fused one, with one metric more: flicker, how much more the fused changes from slice to slice than its sources do.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from ..alignment import transforms
from ..engine import cpu_threads
from ..errors import FusionError
from ..settings import MODALITIES, PLANES
from .terminal import check_folder, positive, progress_bar, results, window

if TYPE_CHECKING:
    from ..research.cases import Reading

FILES = ("scores.csv", "summary.csv", "summary.md", "scores.png")
PACKAGES = ("matplotlib", "scipy", "pywt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, metavar="DIR_A", help="folder of pictures or volumes, or one file")
    parser.add_argument("second", type=Path, metavar="DIR_B", help="the same names")
    parser.add_argument("fused", type=Path, metavar="DIR_FUSED", help="the same names: what was fused of them")
    parser.add_argument("--against", type=Path, metavar="DIR", help="what another method fused: a paired test of both")
    parser.add_argument(
        "--names", nargs="+", metavar="NAME", help="of the one method or the two (default: the folders')"
    )
    add_case_arguments(parser)
    parser.add_argument("--transform", type=Path, help="as used in the fusion (.tfm, .txt, .h5), for volumes")
    parser.add_argument(
        "--window-fused",
        type=window,
        metavar="LOW,HIGH",
        help="of fused volumes (default: bytes as they are, 0 to 1000 as fuse writes, else all)",
    )


def add_case_arguments(parser: argparse.ArgumentParser) -> None:
    """What `evaluate` and `compare` share: the output, which images and metrics, and how volumes are read."""
    parser.add_argument("--output", type=Path, required=True, metavar="OUT_DIR", help="made if its parent exists")
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="some of them (default: all)")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="images with such names, as '34*' (quote it)")
    parser.add_argument("--every", type=positive, default=1, help="take each n-th picture; of volumes, each n-th slice")
    for place in ("first", "second"):
        parser.add_argument(f"--window-{place}", type=window, metavar="LOW,HIGH|PRESET", help="of volumes, as in fuse")
        parser.add_argument(f"--modality-{place}", choices=MODALITIES, help="where the file does not say it")
    parser.add_argument("--plane", choices=PLANES, default=PLANES[0], help="of the slices of volumes")
    parser.add_argument("--threads", type=positive, help="CPU threads")


def check_packages() -> None:
    """Raise FusionError "extra_missing" now, and not after minutes of work."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise FusionError("extra_missing", package=package, extra="evaluate")


def reading(options: argparse.Namespace) -> Reading:
    """How the options want volumes to be read. Raises FusionError."""
    from ..research.cases import Reading

    names = [name for name in Reading.__dataclass_fields__ if name != "transform" and hasattr(options, name)]
    given = getattr(options, "transform", None)
    transform = None if given is None else transforms.read(given)
    return Reading(**{name: getattr(options, name) for name in names}, transform=transform)


def labels(places: list[Path], given: list[str] | None) -> list[str]:
    """A name for each method: the given ones, else those of its folder.

    Raises FusionError "setting_unknown" (too many names), "method_twice".
    """
    from ..research.cases import title

    names = list(given or [])
    if len(names) > len(places):
        raise FusionError("setting_unknown", name="--names", value=" ".join(names), choices=f"{len(places)} at most")
    names += [title(place) for place in places[len(names) :]]
    if given is None and len(set(names)) < len(names):
        names = [str(place) for place in places]
    for name in names:
        if names.count(name) > 1:
            raise FusionError("method_twice", name=name)
    return names


def run(options: argparse.Namespace) -> None:
    check_packages()
    from ..research import cases, evaluate, figures

    chosen = evaluate.choose_metrics(options.metrics)
    methods = [place for place in (options.fused, options.against) if place is not None]
    names = labels(methods, options.names)
    places = [options.first, options.second, *methods]
    check_folder(options.output, places)
    how = reading(options)
    rows: dict[str, list] = {name: [] for name in names}
    with progress_bar("Scoring") as progress, cpu_threads(options.threads):
        matched, step = cases.thinned(cases.match(places, options.only), options.every)
        read = []
        for image, files in matched:
            progress(0.0, f"Reading {image}")
            first, second, *fused = map(cases.load, files)
            case = cases.read_case(image, first, second, how, like=fused[0])
            read.append((case, [cases.read_fused(volume, case, how)[0] for volume in fused]))
        evaluate.check_cases([case for case, _ in read], chosen)
        for number, (case, made) in enumerate(read):
            for name, slices in zip(names, made, strict=True):
                rows[name] += evaluate.score_case(
                    case, slices, chosen, step, lambda n=number, case=case: progress(n / len(read), case.name)
                )
        progress(1.0, "Done")
    found = {name: evaluate.units(some, chosen) for name, some in rows.items()}
    head, lines = evaluate.summary(found)
    text = f"{evaluate.counted(rows[names[0]])}\n\n{evaluate.summary_text(head, lines)}"
    with results(options.output, places, FILES) as files:
        table = [[name, *row.values()] for name, some in rows.items() for row in some]
        evaluate.write_csv(files["scores.csv"], ["method", "image", "slice", *chosen], table)
        evaluate.write_csv(files["summary.csv"], head, lines)
        files["summary.md"].write_text(text, encoding="utf-8")
        figures.plot_scores(found, files["scores.png"])
    print(text)
    print(f"Table, scores of each image and plot are in {options.output}.")
