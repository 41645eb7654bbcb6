"""Train a network on the slice pairs of a folder (needs the `train` extra).

The shipped weights came about by `--preset first`, and from what that gave, made narrower (`research.narrow`), by
`--preset ours`, which needs `--initial`: without and with it, these are the defaults. `--preset paper` follows Gu et
al. 2024: their network, losses and schedule. Options that are given go before the preset.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
from pathlib import Path

from ..engine import pick_device
from ..errors import FusionError
from .terminal import positive

# As in `network.CONFIGS`, `research.data.TASKS` and `research.train.PRESETS`, whose modules need torch.
CONFIGS = ("compact", "paper", "wide")
TASKS = ("CT-MRI", "PET-MRI", "SPECT-MRI")
PRESETS = ("first", "ours", "paper")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI and SPECT-MRI")
    parser.add_argument("--output", type=Path, default=Path("runs/compact"), help="folder of the run")
    parser.add_argument("--preset", choices=PRESETS, help="default: first; with --initial: ours")
    parser.add_argument(
        "--config", choices=CONFIGS, help="network; default: wide (first), compact (ours), paper (paper)"
    )
    parser.add_argument("--loss", choices=PRESETS, help="default: as the preset")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=TASKS,
        default=list(TASKS),
        help="train on these pairs: one for a model of its own, as published; default: all, one model for them",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive, help="default: 9000 (first and ours), 2000 epochs (paper)")
    length.add_argument("--epochs", type=positive, help="in place of steps, where batches are of whole slices")
    parser.add_argument("--batch", type=positive, help="whole slices in a batch; default: crops; --preset paper: 4")
    parser.add_argument(
        "--rate",
        type=positive_number,
        help="greatest learning rate; default: 2e-3 (first), 1.5e-3 (ours), 2e-4 (paper)",
    )
    parser.add_argument(
        "--forget", action="store_true", help="new optimiser moments each step, as the authors' code has it"
    )
    parser.add_argument(
        "--varied",
        type=share,
        metavar="0..1",
        help="how much of the crops may be turned, scaled, shifted, changed in contrast, not only cut; default: 1; "
        "whole slices (--batch) are never varied",
    )
    parser.add_argument("--initial", help="weights to begin with: a file, or the name of shipped ones")
    parser.add_argument("--seed", type=int, choices=range(1_000_000), metavar="0..999999", default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument(
        "--picture-minutes", type=positive_number, default=5, help="between validations and sample pictures"
    )
    parser.add_argument("--checkpoint-minutes", type=positive_number, default=2)
    parser.add_argument("--fresh", action="store_true", help="begin anew, not from the folder's checkpoint")


def positive_number(text: str) -> float:
    """A finite number above 0, for argparse."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(text)
    return value


def share(text: str) -> float:
    """A number from 0 to 1, for argparse."""
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError(text)
    return value


def run(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
    if importlib.util.find_spec("matplotlib") is None:  # heard of now, not at the first report
        raise FusionError("extra_missing", package="matplotlib", extra="train")
    from ..research import train
    from ..research.data import read_pairs

    preset = options.preset or ("ours" if options.initial else "first")
    given = {name: getattr(options, name) for name in ("config", "loss", "rate", "batch", "steps", "epochs", "varied")}
    if options.steps:
        given["epochs"] = 0
    settings = train.TrainSettings(
        data=str(options.data),
        output=str(options.output),
        seed=options.seed,
        device=device,
        threads=options.threads,
        tasks=tuple(task for task in TASKS if task in options.tasks),
        forget=options.forget,
        initial=options.initial or "",
        checkpoint_minutes=options.checkpoint_minutes,
        picture_minutes=options.picture_minutes,
        **train.PRESETS[preset] | {name: value for name, value in given.items() if value is not None},
    )
    if settings.epochs and not settings.batch:
        raise FusionError("epochs_of_crops")
    try:
        pairs = [
            read_pairs(options.data, left_out=out, every=2 if out else 1, bar=True, tasks=settings.tasks)
            for out in (False, True)
        ]
    except (OSError, ValueError) as error:
        raise FusionError("data_missing", path=options.data, why=error) from error
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.output):
            pass
    except OSError as error:
        raise FusionError("output_not_writable", path=options.output) from error
    trainer = train.Trainer(settings, *pairs)
    if options.fresh:
        trainer.clear()
    elif trainer.resume():
        print(f"Going on from step {trainer.step} of {trainer.settings.steps} in {options.output}")
    trainer.run()
    print(f"{options.output / 'weights.pt'}: {trainer.step} steps in {trainer.seconds / 60:.0f} minutes")
