"""Windows: presets, given ones, and the rules for each modality."""

import numpy as np
import pytest

from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.intensity import (
    EIGHT_BIT,
    PRESETS,
    SAMPLE,
    Window,
    automatic_window,
    check_window,
    choose_window,
    eight_bit,
    guess_modality,
    sample,
)
from ASFEFusionLib.volume import Volume


def volume(values, **kw):
    return Volume(np.asarray(values, np.float32).reshape(1, 1, -1), np.eye(4), **kw)


def test_window_maps_its_ends_to_0_and_1():
    assert Window(-160, 240, "").apply(np.array([-500, -160, 40, 240, 3000.0])).tolist() == [0, 0, 0.5, 1, 1]


def test_presets_need_their_units():
    ct = volume([0, 1], modality="CT", units="HU")
    assert choose_window(ct, "CT", "ct-bone").low == PRESETS["ct-bone"][0]
    in_bq = volume([0, 1], units="Bq/mL")
    wrong = [(in_bq, "PET", "pet-suv-5"), (in_bq, "PET", "ct-brain"), (volume([0, 1]), "MR", "ct-brain")]
    wrong += [(volume([0, 1]), "MR", "pet-suv-5"), (ct, "CT", "pet-suv-5")]
    for other, modality, preset in wrong:
        with pytest.raises(FusionError) as caught:
            choose_window(other, modality, preset)
        assert caught.value.code == "window_units"
    # PET whose units nobody states: the user's word is taken.
    assert choose_window(volume([0, 1]), "PET", "pet-suv-5").high == 5


@pytest.mark.parametrize("bad", ["nonsense", (1, 2, 3), 5])
def test_unknown_windows(bad):
    with pytest.raises(FusionError) as caught:
        check_window(bad)
    assert caught.value.code == "window_unknown"


@pytest.mark.parametrize(
    "bad", [(5, 5), (9, 1), (0, float("nan")), (0, float("inf")), (-1e300, 1e300), (0, 1e-300), (1e9, 1e9 + 1)]
)
def test_empty_windows(bad):
    with pytest.raises(FusionError) as caught:
        check_window(bad)
    assert caught.value.code == "window_empty"


def test_automatic_rules(heads):
    assert [automatic_window(heads["CT"], "CT", partner).low for partner in ("MR", None)] == [-450, -450]
    assert [automatic_window(heads["CT"], "CT", partner).low for partner in ("PET", "SPECT", "CT")] == [-160] * 3
    mr = automatic_window(heads["MR"], "MR")
    assert mr.low < 60
    assert mr.high > 700
    pet = automatic_window(heads["PET"], "PET")
    assert pet.low == 0
    assert 6 < pet.high < 16


def test_automatic_window_bears_outliers():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(50_000), rng.normal(500, 80, 50_000), [1e6, -1e6]])
    found = automatic_window(volume(values), "MR")
    assert -1 < found.low < 10
    assert 650 < found.high < 800


def test_sparse_values_still_get_a_window():
    values = np.zeros(10_000)
    values[7] = 3
    for modality in ("PET", "MR", None):
        found = automatic_window(volume(values), modality)
        assert found.low < found.high


def test_one_bright_voxel_that_the_sample_passes_over():
    voxels = np.zeros((130, 130, 130), np.int16)
    voxels[0, 0, 1] = 900
    found = automatic_window(Volume(voxels, np.eye(4)), "PET")
    assert (found.low, found.high) == (0, 900)
    assert sample(voxels).size <= SAMPLE


def test_windows_of_huge_values():
    values = np.float32([-3e38, 0, 1, 2, 3e38] * 100)
    found = automatic_window(volume(values), "MR")
    assert np.isfinite([found.low, found.high]).all()


def test_presets_are_the_usual_levels_and_widths():
    usual = {"ct-brain": (40, 80), "ct-soft-tissue": (40, 400), "ct-bone": (300, 1500), "ct-lung": (-600, 1500)}
    for name, (level, width) in usual.items():
        low, high, units = PRESETS[name]
        assert ((low + high) / 2, high - low, units) == (level, width, "HU")


def test_only_ct_is_guessed(heads):
    bare = {m: Volume(v.voxels, v.ijk_to_physical) for m, v in heads.items()}
    assert [guess_modality(bare[m]) for m in ("CT", "MR", "PET")] == ["CT", None, None]
    assert guess_modality(heads["PET"]) == "PET"


def test_8_bit_pictures_are_taken_as_they_are():
    picture = Volume(np.arange(20, 40, dtype=np.uint8).reshape(1, 4, 5), np.eye(4), two_d=True)
    assert eight_bit(picture)
    assert (EIGHT_BIT.low, EIGHT_BIT.high) == (0, 255)
    assert not eight_bit(Volume(picture.voxels.astype(np.uint16), np.eye(4), two_d=True))
    assert not eight_bit(Volume(picture.voxels, np.eye(4)))
