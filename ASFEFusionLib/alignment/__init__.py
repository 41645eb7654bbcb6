"""Alignment: where the second volume belongs on the first, and whether that can be trusted.

`align` searches a rigid pose; `check` judges one, or the volumes as loaded; `landmarks` and `transforms` give starts.
"""

from .rigid import SEARCHES, Alignment, align
from .verdict import Verdict, check

__all__ = ["SEARCHES", "Alignment", "Verdict", "align", "check"]
