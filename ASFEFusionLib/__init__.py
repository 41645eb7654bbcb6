"""ASFE-Fusion of two medical volumes: everything but Slicer's own panel.

The way of the data: `volume` -> `space` -> `intensity` -> `engine` (with `network`) -> `colour` -> `volume`;
`fusion.fuse` walks it. Inside, geometry is LPS in mm and voxel arrays are (k, j, i). Importing this package imports
neither torch nor SimpleITK: both come in where they are first needed.
"""

__version__ = "0.1.0"
