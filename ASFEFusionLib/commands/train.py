"""Train the compact network on the slice pairs of a folder (needs the `train` extra)."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..engine import pick_device
from ..errors import FusionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI and SPECT-MRI")
    parser.add_argument("--output", type=Path, default=Path("runs/compact"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--rate", type=float, default=2e-3, help="greatest learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--picture-minutes", type=float, default=10, help="between validations and sample pictures")
    parser.add_argument("--checkpoint-minutes", type=float, default=2)
    parser.add_argument("--fresh", action="store_true", help="begin anew, not from the folder's checkpoint")


def run(options: argparse.Namespace) -> None:
    device = pick_device(options.device)
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
        trainer = Trainer(settings)
    except FileNotFoundError as error:
        raise FusionError("data_missing", path=options.data, why=error) from error
    if not options.fresh and trainer.resume():
        print(f"Going on from step {trainer.step} of {settings.steps} in {options.output}")
    trainer.run()
    print(f"{options.output / 'weights.pt'}: {trainer.step} steps in {trainer.seconds / 60:.0f} minutes")
