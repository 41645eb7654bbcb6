"""The Harvard (HMIF) slice pairs: read into memory, split by case, cut and varied for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from ..colour import LUMA

# folder of the task -> folder of the first image (a); the second (b) is always MRI
TASKS = {"CT-MRI": "CT", "PET-MRI": "PET", "SPECT-MRI": "SPECT"}
# Cases that no training sees. PET-MRI 25, 30 and 41 look like one head cut three ways, so there a view is left out,
# not a person.
LEFT_OUT = {"CT-MRI": {34, 41}, "PET-MRI": {30}, "SPECT-MRI": {9, 36}}
# Pairs in a batch by the side of the crop: the pixels of a step stay about the same.
CROPS = {128: 8, 192: 4, 256: 2}
# How often each of them comes: parts of slices at first; then mostly whole slices, as correlations and spread, which
# are of a whole picture, are not those of its parts.
IN_PARTS, MOSTLY_WHOLE = (0.6, 0.25, 0.15), (0.1, 0.15, 0.75)
# Side of the slices that the published training sees whole.
WHOLE = 256


@dataclass
class Pairs:
    """Slice pairs of one task: `a`, `b` uint8 (N, H, W) luminance, their file names, `rgb` (N, H, W, 3) of a."""

    task: str
    names: list[str]
    a: np.ndarray
    b: np.ndarray
    rgb: np.ndarray

    def tensors(self, index: slice | list[int] = slice(None)) -> tuple[torch.Tensor, torch.Tensor]:
        """The chosen pairs as float32 (n, 1, H, W) in [0, 1]."""
        return tuple(torch.from_numpy(x[index]).float().div(255).unsqueeze(1) for x in (self.a, self.b))


def case(name: str) -> int:
    """Number of the patient in a file name: the digits before the last three."""
    return int(Path(name).stem[:-3])


def luminance(rgb: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) uint8: Y = 0.299 R + 0.587 G + 0.114 B, rounded."""
    return np.rint(rgb.astype(np.float32) @ LUMA).astype(np.uint8)


def _read_rgb(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_pairs(
    root: Path, left_out: bool, every: int = 1, bar: bool = False, tasks: Sequence[str] = tuple(TASKS)
) -> list[Pairs]:
    """Pairs of each of `tasks` under `root`: those of the left-out cases, or all others; with a progress bar if asked.

    Raises OSError (missing or no images) and ValueError (names without a case, images of different size).
    """
    result = []
    for task, first in ((task, TASKS[task]) for task in tasks):
        folder = Path(root) / task
        names = sorted(p.name for p in (folder / first).glob("*.png"))
        names = [n for n in names if (case(n) in LEFT_OUT[task]) == left_out][::every]
        if not names:
            raise FileNotFoundError(f"no {task} pairs under {root}")
        files = [[folder / kind / n for n in names] for kind in (first, "MRI")]
        said = {"desc": f"Reading {task}", "leave": False, "disable": not bar}
        rgb, mri = (np.stack([_read_rgb(file) for file in tqdm(some, **said)]) for some in files)
        if min(rgb.shape[1:3]) < max(CROPS) or rgb.shape != mri.shape:
            raise ValueError(f"{task} slices must be of one size, {max(CROPS)} pixels a side or more")
        result.append(Pairs(task, names, luminance(rgb), luminance(mri), rgb))
    return result


def _uniform(low: float, high: float, shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def _crop(pair: torch.Tensor, side: int, rng: torch.Generator) -> torch.Tensor:
    """(2, H, W) -> (2, side, side)."""
    top, left = (int(torch.randint(0, n - side + 1, (), generator=rng)) for n in pair.shape[-2:])
    return pair[:, top : top + side, left : left + side]


def _flipped(crop: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    return crop.flip(-1) if torch.rand((), generator=rng) < 0.5 else crop


def _geometry(pair: torch.Tensor, side: int, rng: torch.Generator) -> torch.Tensor:
    """(2, H, W) -> (2, side, side): a crop, often turned, scaled, partly off the slice, the second a little shifted."""
    if torch.rand((), generator=rng) < 0.5:
        crop = _crop(pair, side, rng)
    else:
        height = pair.shape[-2]
        angle, zoom = _uniform(-3.14, 3.14, (), rng), _uniform(0.7, 1.5, (), rng)
        scale = side / height / zoom
        centre = _uniform(-1, 1, (2,), rng) * max(0.2, 1 - scale)
        turn = torch.tensor([[angle.cos(), -angle.sin()], [angle.sin(), angle.cos()]]) * scale
        shift = torch.zeros(2, 2)
        if torch.rand((), generator=rng) < 0.4:  # up to 2 pixels of misalignment
            shift[1] = _uniform(-4, 4, (2,), rng) / height
        theta = torch.stack([torch.cat([turn, (centre + s)[:, None]], 1) for s in shift])
        grid = F.affine_grid(theta, [2, 1, side, side], align_corners=False)
        crop = F.grid_sample(pair[:, None], grid, align_corners=False)[:, 0]
    return _flipped(crop, rng).rot90(int(torch.randint(0, 4, (), generator=rng)), (-2, -1))


def _intensity(image: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """One (H, W) slice with its contrast, sharpness or noise varied, as other scanners and windows would."""
    kind = float(torch.rand((), generator=rng))
    if kind < 0.12:
        return image ** float(_uniform(0.6, 1.6, (), rng))
    if kind < 0.2:
        return (image * float(_uniform(0.6, 1.3, (), rng))).clamp(0, 1)
    if kind < 0.26:  # smooth, as PET on a coarse grid
        small = F.avg_pool2d(image[None, None], 4)
        return F.interpolate(small, size=image.shape, mode="bicubic", align_corners=False)[0, 0].clamp(0, 1)
    if kind < 0.32:
        noise = torch.randn(image.shape, generator=rng) * float(_uniform(0.01, 0.05, (), rng))
        return (image + noise).clamp(0, 1)
    if kind < 0.36:  # inverted inside the body
        return torch.where(image > 0.02, 1 - image, image)
    return image


def batch(
    pairs: list[Pairs], rng: torch.Generator, shares: Sequence[float] = IN_PARTS, varied: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One training batch a, b (n, 1, side, side) in [0, 1]: all tasks alike often, one crop size.

    `shares`: how often each of `CROPS` comes. `varied`: how much of the pairs may be turned, shifted and of another
    contrast; the others are crops as they are, or mirrored. Third, the task of each pair (n,): its place in `TASKS`.

    Everything random comes from `rng`, so that a batch is a function of its seed.
    """
    side = list(CROPS)[int(torch.multinomial(torch.tensor(shares), 1, generator=rng))]
    first, second, tasks = [], [], []
    start = int(torch.randint(0, len(pairs), (), generator=rng))
    for turn in range(start, start + CROPS[side]):
        # Tasks in turn from a random start: small batches hold different ones too.
        task = pairs[turn % len(pairs)]
        index = int(torch.randint(0, len(task.names), (), generator=rng))
        pair = torch.from_numpy(np.stack([task.a[index], task.b[index]])).float() / 255
        if torch.rand((), generator=rng) < varied:
            a, b = (_intensity(image, rng) for image in _geometry(pair, side, rng))
        else:
            a, b = _flipped(_crop(pair, side, rng), rng)
        first.append(a)
        second.append(b)
        tasks.append(list(TASKS).index(task.task))
    a, b = (torch.stack(slices)[:, None].contiguous() for slices in (first, second))
    return a, b, torch.tensor(tasks)


def whole_batch(pairs: list[Pairs], seed: int, step: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch number `step` of the published training: a, b (n, 1, 256, 256), each batch stretched to [0, 1].

    All pairs in turn, in an order that is anew shuffled in each epoch; the last batch of an epoch may be smaller.
    Slices as they are, larger ones cut to their middle. A function of `seed` and `step`. Source: Gu et al. 2024, whose
    code scales by the smallest and greatest value of the batch.
    """
    index = [(task, n) for task in pairs for n in range(len(task.names))]
    epoch, turn = divmod(step, steps_of_epoch(pairs, size))
    rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    chosen = torch.randperm(len(index), generator=rng)[turn * size : (turn + 1) * size].tolist()
    cut = [[_middle(getattr(index[i][0], kind)[index[i][1]]) for i in chosen] for kind in ("a", "b")]
    return tuple(_stretched(torch.from_numpy(np.stack(slices)).float()[:, None]) for slices in cut)


def steps_of_epoch(pairs: list[Pairs], size: int) -> int:
    """Batches of `size` in which every pair comes once."""
    return -(-sum(len(task.names) for task in pairs) // size)


def _middle(image: np.ndarray) -> np.ndarray:
    top, left = ((n - WHOLE) // 2 for n in image.shape)
    return image[top : top + WHOLE, left : left + WHOLE]


def _stretched(x: torch.Tensor) -> torch.Tensor:
    low, high = x.min(), x.max()
    return (x - low) / (high - low) if high > low else torch.zeros_like(x)
