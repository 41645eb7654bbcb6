"""What several test files use: small phantoms, and where the real data are, if they are."""

import warnings
from pathlib import Path

import pytest

from ASFEFusionLib import phantom

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def heads():
    """CT, MR and PET of the phantom without noise, coarse enough to be quick; do not change them."""
    return {m: phantom.head(m, noise=False, spacing=(3.0, 3.0, 4.0)) for m in ("CT", "MR", "PET")}


@pytest.fixture(scope="session")
def real_volumes():
    """Folder of the real volumes, or None with a warning that says what did not run."""
    return _beside("volumes")


@pytest.fixture(scope="session")
def real_pairs():
    """Folder of the slice pairs, or None with a warning."""
    return _beside("hmif_train")


@pytest.fixture(scope="session")
def real_published():
    """Folder of the published network's layout and reference, or None with a warning."""
    return _beside("../asfe")


def _beside(name):
    folder = SHARED / "data" / name
    if folder.is_dir():
        return folder
    warnings.warn(f"no real data beside the checkout ({name}): its tests checked nothing", stacklevel=2)
    return None


@pytest.fixture(autouse=True)
def _unjudged(request, monkeypatch):
    """How two volumes lie is judged only in tests that are marked `judged`, and in processes of their own."""
    if not request.node.get_closest_marker("judged"):
        from ASFEFusionLib.alignment import Verdict, place

        monkeypatch.setattr(place, "check", lambda *_, **__: Verdict(True, 1.0))


@pytest.fixture
def stage(monkeypatch):
    """The module, opened over an empty scene (see stage.py); nothing that Slicer would refuse may have happened."""
    from stage import Stage

    opened = Stage(monkeypatch)
    yield opened
    opened.close()
    assert opened.children() == ([], [])
    if opened.host:
        assert not opened.host.problems, opened.host.problems
