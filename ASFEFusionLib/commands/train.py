"""Train the compact network on the slice pairs of a folder (needs the `train` extra)."""

from __future__ import annotations

import argparse
import importlib.util
import math
import tempfile
from pathlib import Path

from ..engine import pick_device
from ..errors import FusionError
from .terminal import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI and SPECT-MRI")
    parser.add_argument("--output", type=Path, default=Path("runs/compact"), help="folder of the run")
    parser.add_argument("--steps", type=positive, default=9000)
    parser.add_argument("--rate", type=positive_number, default=2e-3, help="greatest learning rate")
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


def run(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
    if importlib.util.find_spec("matplotlib") is None:  # heard of now, not at the first report
        raise FusionError("extra_missing", package="matplotlib", extra="train")
    from ..research.data import read_pairs
    from ..research.train import Trainer, TrainSettings

    settings = TrainSettings(
        data=str(options.data),
        output=str(options.output),
        steps=options.steps,
        rate=options.rate,
        seed=options.seed,
        device=device,
        threads=options.threads,
        checkpoint_minutes=options.checkpoint_minutes,
        picture_minutes=options.picture_minutes,
    )
    try:
        pairs = [read_pairs(options.data, left_out=out, every=2 if out else 1, bar=True) for out in (False, True)]
    except (OSError, ValueError) as error:
        raise FusionError("data_missing", path=options.data, why=error) from error
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=options.output):
            pass
    except OSError as error:
        raise FusionError("output_not_writable", path=options.output) from error
    trainer = Trainer(settings, *pairs)
    if options.fresh:
        trainer.clear()
    elif trainer.resume():
        print(f"Going on from step {trainer.step} of {settings.steps} in {options.output}")
    trainer.run()
    print(f"{options.output / 'weights.pt'}: {trainer.step} steps in {trainer.seconds / 60:.0f} minutes")
