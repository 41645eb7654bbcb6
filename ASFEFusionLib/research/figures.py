"""Figures of scores and of fused images, by matplotlib (the `evaluate` extra). Each writes one PNG."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import FusionError
from .evaluate import Units, defined, heading

# Of the shorter side of a slice: the side of a crop that nobody chose.
CROP = 0.25
INCH = 1.5  # of a picture's column
BOX = "#ffd000"


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_scores(found: dict[str, Units], path: Path) -> None:
    """A panel for each metric: its spread over the images as a box (quartiles, median, mean a triangle) and points."""
    pyplot = _pyplot()
    names = defined(next(iter(found.values())))
    columns = min(5, len(names))
    lines = math.ceil(len(names) / columns)
    size = (max(2.2, 1.1 * len(found) + 0.9) * columns, 2.5 * lines)
    figure, panels = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    rng = np.random.default_rng(0)  # points beside each other, the same in every run
    for panel, name in zip(panels.flat, names, strict=False):
        values = [v[name][~np.isnan(v[name])] for v in found.values()]
        panel.boxplot(values, widths=0.6, showmeans=True, showfliers=False)
        for n, some in enumerate(values, 1):
            panel.plot(n + rng.uniform(-0.15, 0.15, len(some)), some, ".", markersize=3, alpha=0.4, color=f"C{n - 1}")
        panel.set_xticks(range(1, len(found) + 1), list(found), fontsize="small")
        panel.set_title(heading(name), fontsize="medium")
        panel.tick_params(axis="y", labelsize="small")
    for panel in panels.flat[len(names) :]:
        panel.set_axis_off()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


@dataclass
class Shown:
    """One pair in a figure: its name and pictures, uint8 (h, w) or (h, w, 3): first, second, then each method's."""

    name: str
    pictures: list[np.ndarray]


def find_crop(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    """Left, top and side of the square in which both sources, (h, w) uint8, have most detail to lose.

    Detail: the mean magnitude of the gradient in the square; of the two sources the geometric mean, so that a place
    where one of them alone shows something is not chosen if there is another.
    """
    side = min(max(8, round(CROP * min(a.shape))), *a.shape)
    strength = np.stack([np.hypot(*np.gradient(x.astype(float))) for x in (a, b)])
    mean = torch.nn.functional.avg_pool2d(torch.from_numpy(strength), side, stride=1).numpy()
    # A little added, so that one flat source leaves the other's to choose by.
    product = (mean[0] + 1e-3) * (mean[1] + 1e-3)
    top, left = np.unravel_index(product.argmax(), product.shape)
    return int(left), int(top), side


def check_crop(crop: tuple[int, int, int], picture: np.ndarray, name: str) -> None:
    """Raise FusionError "crop_outside" unless left, top, side lie within the (h, w) picture."""
    left, top, side = crop
    height, width = picture.shape[:2]
    if left < 0 or top < 0 or side < 2 or left + side > width or top + side > height:
        facts = {"left": left, "top": top, "side": side, "size": f"{width} x {height}"}
        raise FusionError("crop_outside", name=name, **facts)


def crops(shown: list[Shown], labels: list[str], path: Path, crop: tuple[int, int, int] | None = None) -> None:
    """For each pair two lines of pictures, whole with the box of the crop, and the crop; a labelled column a source or
    method, all on one grey scale. `crop`: left, top, side in pixels; None: `find_crop` in each pair."""
    pyplot = _pyplot()
    heights = []
    for pair in shown:
        height, width = pair.pictures[0].shape[:2]
        heights += [height / width, 1.0]
    size = (INCH * len(labels) + 0.3, INCH * sum(heights) + 0.4)
    figure, panels = pyplot.subplots(
        2 * len(shown), len(labels), figsize=size, squeeze=False, layout="constrained", height_ratios=heights
    )
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    for n, pair in enumerate(shown):
        grey = [x if x.ndim == 2 else x.max(axis=-1) for x in pair.pictures[:2]]
        left, top, side = crop or find_crop(*grey)
        for column, picture in enumerate(pair.pictures):
            whole, part = panels[2 * n, column], panels[2 * n + 1, column]
            for panel, pixels in ((whole, picture), (part, picture[top : top + side, left : left + side])):
                panel.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                panel.set_xticks([])
                panel.set_yticks([])
            box = pyplot.Rectangle((left - 0.5, top - 0.5), side, side, fill=False, edgecolor=BOX, linewidth=0.9)
            whole.add_patch(box)
            for spine in part.spines.values():
                spine.set_edgecolor(BOX)
        panels[2 * n, 0].set_ylabel(pair.name, fontsize="small")
    for panel, label in zip(panels[0], labels, strict=True):
        panel.set_title(label, fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
