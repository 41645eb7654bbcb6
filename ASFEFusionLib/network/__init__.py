"""The ASFE-Fusion network: `load()` gives it with its weights. Needs torch."""

from .asfe import ASFEFusion
from .configs import COMPACT, CONFIGS, PAPER, WIDE, NetworkConfig
from .weights import load

__all__ = ["COMPACT", "CONFIGS", "PAPER", "WIDE", "ASFEFusion", "NetworkConfig", "load"]
