"""A volume: voxels, and where they lie in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Volume:
    """Voxels and their place.

    `voxels`: (k, j, i) scalars, or (k, j, i, 3) uint8 RGB; k is the slice axis, i runs fastest in memory.
    `ijk_to_physical`: 4 x 4 float64, takes (i, j, k, 1) to physical (x, y, z, 1) in LPS, mm, at voxel centres.
    `modality`: "CT", "MR", "PET", "SPECT", or None if not known.
    `units`: "HU", "SUV", "Bq/mL", or None if arbitrary or not known.
    `two_d`: True for a single 2-D picture (one k, its place along k has no meaning).
    """

    voxels: np.ndarray
    ijk_to_physical: np.ndarray
    modality: str | None = None
    units: str | None = None
    name: str = ""
    two_d: bool = False

    @property
    def rgb(self) -> bool:
        return self.voxels.ndim == 4

    @property
    def size_ijk(self) -> tuple[int, int, int]:
        """Number of voxels along i, j, k."""
        return tuple(int(n) for n in self.voxels.shape[2::-1])

    @property
    def spacing(self) -> np.ndarray:
        """Distance between neighbouring voxel centres along i, j, k (mm)."""
        return np.linalg.norm(self.ijk_to_physical[:3, :3], axis=0)
