"""Colour of the functional volume: its map's luminance is fused, its chroma put back (Y, Cb, Cr of ITU-R BT.601)."""

from __future__ import annotations

import numpy as np

from .errors import FusionError

# Control points, evenly spaced from value 0 to 1, RGB in [0, 1]; each begins in black, so that no uptake has no colour.
MAPS = {
    "hot": ((0, 0, 0), (0.7, 0, 0), (1, 0.35, 0), (1, 0.8, 0.1), (1, 1, 0.9)),
    "heat": ((0, 0, 0), (0.5, 0.15, 0), (1, 0.4, 0), (1, 0.65, 0.1), (1, 0.9, 0.5)),
    "rainbow": ((0, 0, 0), (0.2, 0, 0.7), (0, 0.45, 0.9), (0, 0.75, 0.3), (0.9, 0.85, 0), (1, 0.4, 0), (1, 0, 0)),
    "cool": ((0, 0, 0), (0, 0.2, 0.5), (0, 0.55, 0.85), (0.3, 0.85, 1), (0.85, 1, 1)),
    "green": ((0, 0, 0), (0, 0.35, 0.1), (0.1, 0.75, 0.2), (0.6, 1, 0.5), (0.95, 1, 0.9)),
}
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# R - Y, B - Y in terms of Cr and Cb; G follows from the luma's weights.
CR_TO_R, CB_TO_B = 1.402, 1.772


def check_colour(colour: object) -> str | list[list[float]] | None:
    """A colour setting as plain values: None, a name of `MAPS`, or an (n, 3) table in [0, 1] as lists.

    Raises FusionError "colour_unknown".
    """
    if colour is None or (isinstance(colour, str) and colour in MAPS):
        return colour
    if not isinstance(colour, str):
        try:
            table = np.asarray(colour, np.float32)
        except (TypeError, ValueError):
            table = np.zeros(0)
        if table.ndim == 2 and table.shape[1] == 3 and len(table) > 1 and table.min() >= 0 and table.max() <= 1:
            return table.tolist()
    raise FusionError("colour_unknown", value=colour if isinstance(colour, str) else "table", choices=", ".join(MAPS))


def map_table(colour: object, entries: int = 1024) -> np.ndarray:
    """(entries, 3) float32: Y, Cb and Cr of the map from value 0 to 1."""
    points = np.asarray(MAPS[colour] if isinstance(colour, str) else colour, np.float32)
    at, known = np.linspace(0, 1, entries), np.linspace(0, 1, len(points))
    rgb = np.stack([np.interp(at, known, points[:, c]) for c in range(3)], 1).astype(np.float32)
    return np.concatenate([luminance(rgb)[:, None], chroma(rgb)], 1)


def map_luminance(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Y of the map at values in [0, 1], float32: what enters the fusion for a coloured volume, as published."""
    return np.take(np.ascontiguousarray(table[:, 0]), _entries(values, table))


def _entries(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    return np.rint(values * (len(table) - 1)).astype(np.intp)


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Y of RGB in the last axis, float32, same range."""
    return np.asarray(rgb, np.float32) @ LUMA


def chroma(rgb: np.ndarray) -> np.ndarray:
    """(..., 2) Cb and Cr of (..., 3) RGB, float32, same range, zero for grey."""
    rgb = np.asarray(rgb, np.float32)
    y = rgb @ LUMA
    return np.stack([(rgb[..., 2] - y) / CB_TO_B, (rgb[..., 0] - y) / CR_TO_R], -1)


def _offsets(cb_cr: np.ndarray) -> np.ndarray:
    """(..., 3): R - Y, G - Y, B - Y."""
    red, blue = CR_TO_R * cb_cr[..., 1], CB_TO_B * cb_cr[..., 0]
    green = -(LUMA[0] * red + LUMA[2] * blue) / LUMA[1]
    return np.stack([red, green, blue], -1)


def put_back(y: np.ndarray, cb_cr: np.ndarray) -> np.ndarray:
    """RGB in [0, 1] of Y and its Cb, Cr, clipped as the published method does: (...), (..., 2) -> (..., 3)."""
    return np.clip(y[..., None] + _offsets(cb_cr), 0, 1)


def colourise(y: np.ndarray, functional: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Fused luminance `y` with the chroma that the functional value has in the `map_table`; both in [0, 1].

    Where a full chroma would leave [0, 1], it is paled and not clipped: hue and the fused luminance stay. -> (..., 3)
    uint8.
    """
    offsets = _offsets(table[:, 1:])
    entries = _entries(functional, table)
    # The greatest part s of the chroma with 0 <= y + s * offset <= 1 in all three: the greatest offset up and the
    # greatest one down decide, and those are known for each entry of the table.
    up, down = (np.maximum(side.max(1), 1e-6) for side in (offsets, -offsets))
    part = np.minimum((1 - y) / up[entries], y / down[entries])
    np.minimum(part, 1, out=part)
    result = np.empty((*y.shape, 3), np.uint8)
    for channel in range(3):
        value = np.ascontiguousarray(offsets[:, channel])[entries]
        value *= part
        value += y
        value *= 255
        result[..., channel] = np.clip(np.rint(value, out=value), 0, 255, out=value)
    return result
