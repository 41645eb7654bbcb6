"""A labelled set of slice pairs, made from the phantom, whose class neither modality shows alone.

In every pair the MR slice has a bright nodule and the CT slice a calcification. The label says whether the
calcification lies in the nodule (`inside`) or elsewhere (`apart`). Both places are drawn alike, whatever the label, so
that a CT slice or an MR slice by itself says nothing about it: only their places against each other do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .. import phantom
from ..grids import Grid
from ..space import resample

SIDE, SPACING = 96, 2.3  # pixels of a slice, mm
LABELS = ("apart", "inside")
# Windows of the slices: white bone over dark grey brain in CT, grey brain in MR.
WINDOWS = {"CT": (-150.0, 650.0), "MR": (0.0, 1300.0)}
NOISE = 4.0  # grey levels
BRIGHTNESS = {"CT": (0.95, 1.0), "MR": (0.7, 0.8)}  # calcification white, nodule light grey (black 0, white 1)
# mm: radii of the calcification and the nodule (least, greatest), and how far apart two places are at least.
CALCIFIED, NODULE, APART = (5.0, 6.5), (11.0, 14.0), 32.0
README = """A synthetic set: slices of the phantom of ASFEFusion, no patient. Made by
`python -m ASFEFusionLib downstream --make-synthetic DIR` ({patients} patients, {slices} slices each, seed {seed}).

Each MR slice has a bright nodule, each CT slice a calcification; the label says whether the calcification lies inside
the nodule. One image alone says nothing about the label. The set can show that a pipeline gets at what two images tell
together. It cannot show that fused images help in any diagnosis: the question was made for it.
"""


def make(folder: Path, patients: int = 80, slices: int = 2, seed: int = 1) -> None:
    """Writes labels.csv, README.txt and the pictures, CT/pNNN_S.png and MR/pNNN_S.png, into the empty `folder`.

    All slices of a patient have one label; the same arguments give the same files. Raises OSError.
    """
    from PIL import Image

    rng = np.random.default_rng([seed, 2024])
    heads = {m: phantom.head(m, noise=False, spacing=(2.0, 2.0, 2.0)) for m in WINDOWS}
    rows = ["patient,first,second,label"]
    for modality in WINDOWS:
        (folder / modality).mkdir()
    labels = rng.permutation(patients) % 2
    for patient in range(patients):
        turn, size = rng.uniform(-15, 15), rng.uniform(0.93, 1.07)
        for number in range(slices):
            images = _pair(heads, labels[patient], turn, size, rng)
            files = [f"{modality}/p{patient:03d}_{number}.png" for modality in images]
            for file, image in zip(files, images.values(), strict=True):
                Image.fromarray(image).save(folder / file)
            rows.append(f"p{patient:03d},{files[0]},{files[1]},{LABELS[labels[patient]]}")
    (folder / "README.txt").write_text(README.format(patients=patients, slices=slices, seed=seed), encoding="utf-8")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _pair(heads: dict, label: int, turn: float, size: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The slices {modality: (SIDE, SIDE) uint8} of one pair."""
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) * SPACING * size
    centre = np.add(phantom.HEAD_CENTRE, rng.uniform((-4, -4, -4), (4, 4, 12)))
    matrix[:3, 3] = centre - matrix[:3, :3] @ ((SIDE - 1) / 2, (SIDE - 1) / 2, 0)
    grid = Grid((SIDE, SIDE, 1), matrix)
    places = _places(rng)
    # The nodule at the first place, the calcification there too or at the other: swapping the two places changes
    # nothing, so both kinds are found everywhere alike often under both labels.
    radius = {"MR": rng.uniform(*NODULE), "CT": rng.uniform(*CALCIFIED)}
    where = {"MR": places[0], "CT": places[0 if LABELS[label] == "inside" else 1] + rng.uniform(-3, 3, 2)}
    images = {}
    for modality, (low, high) in WINDOWS.items():
        values = (resample(heads[modality], grid)[0] - low) / (high - low)
        values = np.clip(values, 0, 1)
        y, x = (np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2) * SPACING * size
        distance = np.hypot(x - where[modality][0], y - where[modality][1])
        share = np.clip(0.5 + (radius[modality] - distance) / SPACING, 0, 1)
        values += share * (rng.uniform(*BRIGHTNESS[modality]) - values)
        images[modality] = np.clip(values * 255 + NOISE * rng.standard_normal(values.shape), 0, 255).astype(np.uint8)
    return images


def _places(rng: np.random.Generator) -> np.ndarray:
    """Two places in the brain, (2, 2) mm across and down from the middle, drawn alike and `APART` or more."""
    while True:
        places = rng.uniform(-1, 1, (2, 2)) * (48, 60)
        if np.all(np.hypot(places[:, 0] / 48, places[:, 1] / 60) < 1) and np.hypot(*(places[0] - places[1])) > APART:
            return places
