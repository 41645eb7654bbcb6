"""PyTorch comes from Slicer's PyTorch extension, is asked for where it is first needed, and never installed by us."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re

import slicer
from slicer.i18n import tr as _

from ASFEFusionLib.engine import OLDEST_TORCH
from ASFEFusionLib.errors import FusionError


def torchVersion() -> str | None:
    """Version of the PyTorch that is there, without importing it; None if there is none."""
    try:
        if importlib.util.find_spec("torch") is None:
            return None
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return ""  # there, and it does not say: the run itself will tell
    except (ImportError, ValueError):
        return None


def isOld(version: str) -> bool:
    """True if the version is known and below the oldest that serves."""
    numbers = [int(n) for n in re.findall(r"\d+", version)[:2]]
    return bool(numbers) and numbers < [int(n) for n in OLDEST_TORCH.split(".")]


def ensureTorch() -> bool:
    """True if PyTorch is there; else it is installed through the PyTorch extension, once the user agrees.

    Raises FusionError "torch_old"; shows what to do, and gives False, if the extension is missing or the user declines.
    """
    version = torchVersion()
    if version is not None:
        if isOld(version):
            raise FusionError("torch_old", version=version, needed=OLDEST_TORCH)
        return True
    try:
        import PyTorchUtils
    except ImportError:
        slicer.util.warningDisplay(
            _(
                "Fusing needs PyTorch, which the PyTorch extension provides. In the Extensions Manager, install the"
                " extension PyTorch, restart Slicer, and press Apply again."
            ),
            windowTitle=_("PyTorch is needed"),
        )
        return False
    question = _(
        "Fusing needs PyTorch {oldest} or newer. The PyTorch extension will now download and install it into Slicer,"
        " 0.2 to 3 GB depending on the graphics card; this can take some minutes. Continue?"
    ).format(oldest=OLDEST_TORCH)
    if not slicer.util.confirmOkCancelDisplay(question, windowTitle=_("PyTorch is needed")):
        return False
    logic = PyTorchUtils.PyTorchUtilsLogic()
    try:
        installed = logic.installTorch(askConfirmation=False, torchVersionRequirement=f">={OLDEST_TORCH}")
    except Exception as error:  # whatever pip says: no network, no space, no permission
        raise FusionError("torch_install", why=str(error).splitlines()[0] if str(error) else repr(error)) from error
    return installed is not None
