"""Show versions, devices and weights."""

from __future__ import annotations

import argparse

from ..engine import pick_device
from ..errors import FusionError
from ..fusion import versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", help="file or name (default: the shipped ones)")


def run(options: argparse.Namespace) -> None:
    for name, version in versions().items():
        print(f"{name:12} {version}")
    devices = []
    for device in ("cuda", "mps", "cpu"):
        try:
            devices.append(pick_device(device))
        except FusionError as error:
            if error.code == "torch_missing":
                raise
    print(f"{'devices':12} {', '.join(devices)}")
    from ..network import load

    net = load(options.weights)
    count = sum(p.numel() for p in net.parameters())
    print(f"{'weights':12} {net.weights_name}, {count:,} parameters")
    print(f"{'SHA-256':12} {net.weights_hash}")
    for name, text in net.about.items():
        print(f"{name:12} {text}")
