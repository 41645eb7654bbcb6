"""Weights in a file: stored as plain tensors beside the config they fit, loaded without running code from the file."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch

from ..errors import FusionError
from .asfe import ASFEFusion
from .configs import COMPACT, PAPER, NetworkConfig
from .published import fill, is_published

FORMAT = "ASFEFusion weights 1"
# The same place beside the package in the source tree and in an installed extension.
FOLDER = Path(__file__).resolve().parents[2] / "Resources" / "Weights"


def find(name_or_path: str | os.PathLike | None = None) -> Path:
    """File of shipped weights by their name, or the given file; None: the default. Raises FusionError."""
    name = COMPACT.name if name_or_path is None else name_or_path
    shipped = FOLDER / f"{name}.pt"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.pt"))) or "none"
        raise FusionError("weights_missing", path=str(name), known=known)
    return path


def file_hash(path: Path) -> str:
    """SHA-256 of the file, hexadecimal."""
    total = hashlib.sha256()
    with open(path, "rb") as file:  # in pieces: a paper-sized file is 0.7 GB (Python 3.10 has no file_digest)
        for piece in iter(lambda: file.read(1 << 20), b""):
            total.update(piece)
    return total.hexdigest()


def _digest_of(config: dict, state: dict[str, torch.Tensor]) -> str:
    """SHA-256 of all that decides the result: the file's zip does not notice a changed value."""
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name in sorted(state):
        total.update(name.encode())
        total.update(state[name].contiguous().numpy().tobytes())
    return total.hexdigest()


def save(path: str | os.PathLike, net: ASFEFusion, about: dict[str, str]) -> None:
    """Writes the net's config and tensors with a digest of them; `about` is plain text for `info`."""
    state = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    config = net.config.to_dict()
    content = {
        "format": FORMAT,
        "config": config,
        "about": about,
        "digest": _digest_of(config, state),
        "state": state,
    }
    beside = Path(path).with_suffix(".part")
    torch.save(content, beside)
    os.replace(beside, path)


def _read(path: Path) -> dict:
    try:
        # weights_only: tensors and plain values, nothing that could run. Not mapped from the file: what is written over
        # a mapped file would change the network, or end the process.
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise FusionError("weights_damaged", path=str(path)) from error


def load(name_or_path: str | os.PathLike | None = None, device: str = "cpu") -> ASFEFusion:
    """The network in eval mode on `device`, called as net(a, b) on (N, 1, H, W) tensors in [0, 1].

    `name_or_path`: name of shipped weights ("compact", the default), a file of `save`, or a checkpoint in the layout of
    the paper's authors (`published` has the mapping). What is read is held once.
    The module's `weights_name`, `weights_hash` (SHA-256 of the file) and `about` say what was loaded. Raises
    FusionError: weights_missing, weights_damaged, weights_other, weights_incomplete.
    """
    path = find(name_or_path)
    content = _read(path)
    published = is_published(content)
    net = _published(content, path) if published else _ours(content, path)
    net.weights_name, net.weights_hash = path.stem, file_hash(path)
    net.eval().requires_grad_(False).to(device)
    # Channels last makes convolutions faster. It copies their weights: of published ones, 0.7 GB, the small part alone.
    for part in (net.encoder, net.decoder) if published else (net,):
        part.to(memory_format=torch.channels_last)
    return net


def _empty(config: NetworkConfig) -> ASFEFusion:
    """A network without memory of its own, until a file's tensors become its."""
    with torch.device("meta"):
        return ASFEFusion(config)


def _published(content: dict, path: Path) -> ASFEFusion:
    net = _empty(PAPER)
    fill(net, content, path)
    net.about = {"training": "a checkpoint of the published network"}
    return net


def _ours(content: object, path: Path) -> ASFEFusion:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FusionError("weights_other", path=str(path))
    try:
        net = _empty(NetworkConfig.from_dict(content["config"]))
        intact = content["digest"] == _digest_of(content["config"], content["state"])
        net.load_state_dict(content["state"], assign=True)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise FusionError("weights_other", path=str(path)) from error
    if not intact:
        raise FusionError("weights_damaged", path=str(path))
    net.about = content.get("about", {})
    return net
