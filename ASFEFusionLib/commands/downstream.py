"""Classify by the first images, the second, both, and fused ones: what a fusion keeps (needs the `evaluate` extra).

The table is a CSV file with the columns patient, first, second, label: one pair of 8-bit pictures a line, paths
relative to the table. Folds are split by patient. The result says how much of these labels one small classifier learns
from each kind of image; it does not say that fused images help a person. `--make-synthetic` makes a set that shows the
command: its class is visible in the two modalities together only.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
import shutil
import uuid
from pathlib import Path

import numpy as np

from ..engine import Engine, cpu_threads
from ..errors import FusionError
from .terminal import add_engine_arguments, check_folder, positive, progress_bar, results

FILES = ("downstream.csv", "downstream.md", "downstream.png", "predictions.csv")
RESERVED = ("first", "second", "both", "fused")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--labels", type=Path, metavar="FILE.csv", help="with the columns patient, first, second, label")
    what.add_argument("--make-synthetic", type=Path, metavar="DIR", help="make a set to try it with, in a new folder")
    parser.add_argument("--output", type=Path, metavar="OUT_DIR", help="for the results, made if its parent exists")
    parser.add_argument("--fuse", action="store_true", help="fuse the pairs with our network too (--weights: another)")
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="NAME=DIR", help="images of other methods, named as the first ones"
    )
    parser.add_argument(
        "--classical", nargs="+", default=[], metavar="NAME", help="classical fusions: AVG, MAX, LP, .."
    )
    parser.add_argument("--folds", type=at_least_two, default=5)
    parser.add_argument("--seeds", type=positive, default=3, help="repetitions with other folds and first weights")
    parser.add_argument("--patients", type=at_least_two, default=80, help="of the synthetic set")
    add_engine_arguments(parser)


def at_least_two(text: str) -> int:
    """A whole number above 1, for argparse."""
    value = int(text)
    if value < 2:
        raise ValueError(text)
    return value


def run(options: argparse.Namespace) -> None:
    if options.make_synthetic:
        make_synthetic(options.make_synthetic, options.patients)
        return
    if options.output is None:
        raise FusionError("output_missing")
    if importlib.util.find_spec("matplotlib") is None:  # heard of now, not after minutes
        raise FusionError("extra_missing", package="matplotlib", extra="evaluate")
    folders = named_folders(options.images, [*RESERVED, *options.classical])
    check_folder(options.output, [options.labels.parent, *folders.values()])
    from ..research import classify, downstream, labelled

    table = labelled.read(options.labels, options.folds)
    with cpu_threads(options.threads):
        kinds = _kinds(options, table, folders)
    with cpu_threads(options.threads or 1):  # small sums: more threads wait for each other longer than they work
        found: dict[str, np.ndarray] = {}
        done, fits = 0, len(kinds) * options.seeds * options.folds
        with progress_bar("Classifying") as progress:
            for name, images in kinds.items():

                def tick(name: str = name) -> None:
                    nonlocal done
                    done += 1
                    progress(done / fits, name)

                found[name] = classify.cross_validate(
                    images, table.patients, table.labels, folds=options.folds, seeds=options.seeds, tick=tick
                )
    result = downstream.scores(found, table)
    text = downstream.text(result, table, f"{options.folds} folds by patient, {options.seeds} seeds")
    with results(options.output, [options.labels.parent], FILES) as files:
        _write(files["downstream.csv"], downstream.HEAD, downstream.lines(result, table))
        _write(files["predictions.csv"], *_predictions(found, table))
        files["downstream.md"].write_text(text, encoding="utf-8")
        downstream.plot(result, table, files["downstream.png"])
    print(text)
    print(f"Table, predictions and plot are in {options.output}.")


def make_synthetic(folder: Path, patients: int) -> None:
    """Makes the synthetic set in `folder`, which must be new or empty, whole or not at all."""
    from ..research import synthetic

    check_folder(folder, [])
    if folder.is_dir() and any(folder.iterdir()):
        raise FusionError("folder_not_empty", path=folder)
    part = folder.resolve().with_name(f".{uuid.uuid4().hex}")
    try:
        part.mkdir()
        synthetic.make(part, patients)
        if folder.is_dir():
            folder.rmdir()  # empty, as was looked
        os.replace(part, folder.resolve())
    except OSError as error:
        raise FusionError("output_failed", path=folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    print(f"{folder / 'labels.csv'}: a synthetic set of {patients} patients. It shows that the command works, no more.")
    print(f"Now: python -m ASFEFusionLib downstream --labels {folder / 'labels.csv'} --fuse --output OUT_DIR")


def named_folders(given: list[str], taken: list[str]) -> dict[str, Path]:
    """{name: folder} of NAME=DIR. Raises FusionError "images_unnamed", "method_twice", "folder_missing"."""
    folders: dict[str, Path] = {}
    for text in given:
        name, found, folder = text.partition("=")
        if not (name and found and folder):
            raise FusionError("images_unnamed", value=text)
        if name in folders or name in taken:
            raise FusionError("method_twice", name=name)
        folders[name] = Path(folder)
    return folders


def _kinds(options: argparse.Namespace, table: object, folders: dict[str, Path]) -> dict[str, np.ndarray]:
    """All that is classified by: (N, channels, H, W) uint8 by name."""
    from ..research import labelled
    from ..research.baselines import BASELINES

    for name in options.classical:
        if name not in BASELINES:
            raise FusionError("setting_unknown", name="--classical", value=name, choices=", ".join(BASELINES))
    pair = np.stack([table.first, table.second], 1)
    kinds = {"first": pair[:, :1], "second": pair[:, 1:], "both": pair}
    for name, folder in folders.items():
        kinds[name] = labelled.of_method(folder, table)[:, None]
    engine = Engine(options.weights, options.device) if options.fuse else None
    for name in [*(["fused"] if engine else []), *dict.fromkeys(options.classical)]:
        fuse = engine.fuse if name == "fused" else _classical(BASELINES[name])
        made = [np.empty((0, *table.first.shape[1:]), np.float32)]
        with progress_bar(f"Fusing ({name})") as progress:
            step = engine.batch(*table.first.shape[1:]) if name == "fused" else 8
            for start in range(0, len(pair), step):
                progress(start / len(pair), "")
                made.append(fuse(*(pair[start : start + step, n].astype(np.float32) / 255 for n in (0, 1))))
            progress(1.0, "Done")
        # As a picture file would hold it, like those of other methods.
        kinds[name] = np.rint(np.concatenate(made).clip(0, 1) * 255).astype(np.uint8)[:, None]
    return kinds


def _classical(method: object) -> object:
    import torch

    def fuse(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return method(*(torch.from_numpy(x)[:, None] for x in (a, b)))[:, 0].numpy()

    return fuse


def _predictions(found: dict[str, np.ndarray], table: object) -> tuple[list[str], list[list[object]]]:
    """Header and lines: each image's probabilities by method and seed."""
    head = ["method", "seed", "patient", "first", "label", *(f"p_{name}" for name in table.classes)]
    rows = [
        [name, seed, patient, image, table.classes[label], *(f"{p:.4f}" for p in row)]
        for name, probabilities in found.items()
        for seed, some in enumerate(probabilities)
        for patient, image, label, row in zip(table.patients, table.names, table.labels, some, strict=True)
    ]
    return head, rows


def _write(path: Path, head: object, rows: list[list[object]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
