"""From a volume's own units to [0, 1]: one window a volume, so that nothing flickers from slice to slice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .errors import FusionError
from .volume import Volume

# name -> (low, high, units the window is meant for). CT: the usual level and width in HU.
PRESETS = {
    "ct-brain": (0.0, 80.0, "HU"),
    "ct-soft-tissue": (-160.0, 240.0, "HU"),
    "ct-bone": (-450.0, 1050.0, "HU"),
    "ct-lung": (-1350.0, 150.0, "HU"),
    "pet-suv-5": (0.0, 5.0, "SUV"),
    "pet-suv-10": (0.0, 10.0, "SUV"),
    "pet-suv-15": (0.0, 15.0, "SUV"),
}
# The automatic window of CT. Beside MR, whose soft tissue is better, CT is there for the bone: its own soft tissue,
# bright and noisy in a narrow window, would cover the MR's. Beside PET and SPECT it is the only anatomy.
CT_BESIDE_MR, CT_BESIDE_OTHERS = "ct-bone", "ct-soft-tissue"
# The automatic rules look at this many voxels at most, evenly spread.
SAMPLE = 2_000_000


@dataclass(frozen=True)
class Window:
    """`low` becomes 0 and `high` becomes 1 (the volume's units); `source` says where they come from."""

    low: float
    high: float
    source: str

    def apply(self, values: np.ndarray) -> np.ndarray:
        """float32 in [0, 1]; in place if `values` are float32."""
        values = np.asarray(values, dtype=np.float32)
        values -= np.float32(self.low)
        values *= np.float32(1 / (self.high - self.low))
        return np.clip(values, 0, 1, out=values)


EIGHT_BIT = Window(0.0, 255.0, "8-bit picture: as it is")


def eight_bit(volume: Volume) -> bool:
    """True for a picture of 8 bits: it has been windowed once and is taken as it is."""
    return volume.two_d and volume.voxels.dtype == np.uint8


def check_window(setting: object) -> str | tuple[float, float] | None:
    """A window setting as `FusionSettings` keeps it. Raises FusionError "window_unknown" or "window_empty"."""
    if setting is None:
        return None
    if isinstance(setting, str) and setting in PRESETS:
        return setting
    try:
        if not isinstance(setting, list | tuple | np.ndarray):
            raise TypeError("neither a preset nor two values")
        low, high = (float(v) for v in setting)
    except (TypeError, ValueError) as error:
        raise FusionError("window_unknown", value=setting, choices=", ".join(PRESETS)) from error
    with np.errstate(all="ignore"):  # voxels are float32: so must the window and its slope be
        least, most = np.float32(low), np.float32(high)
        slope = 1 / (most - least)
    if not (least < most and math.isfinite(slope) and slope > 0):
        raise FusionError("window_empty", low=low, high=high)
    return (low, high)


def guess_modality(volume: Volume) -> str | None:
    """The volume's modality, or "CT" if its values can hardly be else (much air near -1000), or None."""
    if volume.modality is not None or volume.two_d:
        return volume.modality
    values = sample(volume.voxels)
    low = values.min(initial=0)
    return "CT" if low <= -900 and np.mean(values < -700) > 0.02 and values.max(initial=0) < 32000 else None


def sample(voxels: np.ndarray) -> np.ndarray:
    """Finite values of at most `SAMPLE` voxels, evenly spread, as float64, in which no sum of them overflows."""
    # An odd step does not fall in with the row length as a power of two would.
    step = -(-voxels.size // SAMPLE) | 1
    values = voxels.ravel()[::step].astype(np.float64)
    return values[np.isfinite(values)]


def automatic_window(volume: Volume, modality: str | None, partner: str | None = None) -> Window:
    """The window for a modality, beside a `partner` modality (None: not known, most likely MR).

    CT: bone (-450 to 1050 HU) beside MR, soft tissue (-160 to 240 HU) beside PET, SPECT and CT. PET, SPECT: 0 to the
    99.5th percentile of the uptake above 5 % of the greatest. MR and all else: from the 0.5th percentile of all values
    to the 99.5th of those above the mean (the body). `volume` must be finite and not constant.
    """
    if modality == "CT":
        preset = CT_BESIDE_MR if partner in ("MR", None) else CT_BESIDE_OTHERS
        return Window(*PRESETS[preset][:2], f"automatic: {preset}")
    values = sample(volume.voxels)
    if modality in ("PET", "SPECT"):
        uptake = values[values > 0.05 * np.percentile(values, 99.9)]
        low, high, source = 0.0, _percentile(uptake, 99.5), "automatic: 0 to 99.5 % of the uptake"
    else:
        body = values[values > values.mean()]
        low, high = _percentile(values, 0.5), _percentile(body, 99.5)
        source = "automatic: 0.5 % of all to 99.5 % of the body"
    if not low < high:  # a few bright voxels in nothing
        low, high = float(volume.voxels.min()), float(volume.voxels.max())
        source = "automatic: least to greatest value"
    return Window(low, high, source)


def _percentile(values: np.ndarray, percent: float) -> float:
    return float(np.percentile(values, percent)) if values.size else 0.0


def choose_window(
    volume: Volume,
    modality: str | None,
    setting: str | tuple[float, float] | None,
    partner: str | None = None,
) -> Window:
    """The window that the setting asks for; None: automatic, see `automatic_window`.

    Raises FusionError "window_units" if a preset is for other units.
    """
    if setting is None:
        return automatic_window(volume, modality, partner)
    if isinstance(setting, str):
        low, high, units = PRESETS[setting]
        known = volume.units or ("HU" if modality == "CT" else None)
        meant_for = ("CT", "CBCT") if units == "HU" else ("PET",)
        if known not in (None, units) or modality not in (None, *meant_for):
            has = known or f"{modality} values"
            raise FusionError("window_units", preset=setting, units=units, name=volume.name or "the volume", has=has)
        return Window(low, high, f"preset: {setting}")
    return Window(*setting, "given")
