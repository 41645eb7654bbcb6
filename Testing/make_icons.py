"""Makes what is in Resources/Icons: the module's icon and the thumbnails of the sample data.

Run from anywhere: `python Testing/make_icons.py [FOLDER]`. The icon: a grey slice of a head and a warm one, and what
both show where they overlap. The thumbnails: half of each of the two volumes, in one slice of the synthetic head.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from ASFEFusionLib import phantom
from ASFEFusionLib.colour import MAPS
from ASFEFusionLib.grids import cut_out, grid_of
from ASFEFusionLib.intensity import automatic_window
from ASFEFusionLib.space import resample

SIZE = 128
FINE = 8  # drawn this much larger and scaled down, for smooth edges
ICONS = Path(__file__).resolve().parents[1] / "Resources" / "Icons"
SAMPLES = {"ASFEFusionHeadCTMR": ("CT", "MR"), "ASFEFusionHeadMRPET": ("MR", "PET")}

# Centres and radii in icon pixels.
GREY, WARM = (44, 64), (84, 64)
RADII = (42, 57)
EDGE, SKULL = 4, 10

DARK, BONE, BRAIN = (38, 42, 50), (236, 239, 243), (112, 121, 134)
EMBER, ORANGE, GLOW = (178, 44, 34), (240, 122, 34), (255, 226, 120)


def head(centre, shrunk=0):
    """Mask of a head seen from above, `shrunk` by so many icon pixels."""
    mask = Image.new("L", (SIZE * FINE, SIZE * FINE))
    (x, y), (rx, ry) = centre, (r - shrunk for r in RADII)
    ImageDraw.Draw(mask).ellipse([FINE * v for v in (x - rx, y - ry, x + rx, y + ry)], fill=255)
    return mask


def glow(centre, radius, inner, outer):
    """Colour that goes from `inner` at the centre to `outer` at the radius and beyond."""
    side = 2 * radius * FINE
    ramp = Image.radial_gradient("L").point(lambda v: min(255, 2 * v * 255 // 360)).resize((side, side))
    placed = Image.new("L", (SIZE * FINE, SIZE * FINE), 255)
    placed.paste(ramp, ((centre[0] - radius) * FINE, (centre[1] - radius) * FINE))
    plain = [Image.new("RGB", placed.size, colour) for colour in (outer, inner)]
    return Image.composite(*plain, placed)


def draw():
    """The icon as an RGBA image of SIZE x SIZE."""
    grey, warm = head(GREY), head(WARM)
    colour = Image.new("RGB", grey.size, DARK)
    colour.paste(glow(WARM, 56, ORANGE, EMBER), mask=head(WARM, EDGE))
    colour.paste(DARK, mask=grey)
    colour.paste(BONE, mask=head(GREY, EDGE))
    colour.paste(BRAIN, mask=head(GREY, EDGE + SKULL))
    # The overlap carries both: the warm one's colours, the grey one's skull over them.
    both = ImageChops.multiply(grey, head(WARM, EDGE))
    middle = ((GREY[0] + WARM[0]) // 2, GREY[1])
    colour.paste(glow(middle, 44, GLOW, ORANGE), mask=ImageChops.multiply(both, head(GREY, EDGE + SKULL)))
    colour.paste(DARK, mask=ImageChops.subtract(ImageChops.multiply(warm, grey), head(WARM, EDGE)))
    icon = colour.convert("RGBA")
    icon.putalpha(ImageChops.lighter(grey, warm))
    return icon.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def thumbnail(left, right):
    """The left half of one modality and the right half of the other, in the same slice, as an RGB image."""
    heads = {modality: phantom.head(modality) for modality in {left, right, "MR"}}
    grid = grid_of(heads["MR"])
    k = round(0.58 * grid.size[2])
    plane = cut_out(grid, (slice(k, k + 1), slice(0, grid.size[1]), slice(0, grid.size[0])))
    halves = []
    for modality in (left, right):
        volume = heads[modality]
        values = automatic_window(volume, modality, "MR").apply(resample(volume, plane)[0])
        steps, hot = np.linspace(0, 1, len(MAPS["hot"])), np.array(MAPS["hot"])
        warm = np.stack([np.interp(values, steps, hot[:, channel]) for channel in range(3)], -1)
        halves.append(warm if modality == "PET" else np.repeat(values[..., None], 3, -1))
    height, width = halves[0].shape[:2]
    picture = np.where((np.arange(width) < width // 2)[None, :, None], *halves)
    picture[:, width // 2 - 1 : width // 2 + 1] = 0.9
    side = max(height, width)
    image = Image.new("RGB", (side, side))
    image.paste(Image.fromarray(np.rint(255 * picture).astype(np.uint8)), ((side - width) // 2, (side - height) // 2))
    return image.resize((200, 200), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ICONS
    folder.mkdir(parents=True, exist_ok=True)
    draw().save(folder / "ASFEFusion.png", optimize=True)
    for name, pair in SAMPLES.items():
        thumbnail(*pair).save(folder / f"{name}.png", optimize=True)
