"""The synthetic head: the same anatomy on unlike grids, in the right places."""

from functools import cache

import numpy as np
import pytest

from ASFEFusionLib import phantom

COARSE = {"CT": (2.7, 2.7, 3.0), "MR": (3.0, 3.0, 2.4), "PET": (5.0, 5.0, 5.0)}
# Points deep enough in their tissue for a coarse voxel's soft edge not to reach them.
DEEP = ("lesion", "eye_left", "eye_right", "thalamus_left", "thalamus_right", "petrous_left", "petrous_right", "pons")


@cache
def head(modality, noise=False, fine=False):
    return phantom.head(modality, noise=noise, spacing=None if fine else COARSE[modality])


def value_at(volume, point):
    """Trilinear, at a point in LPS mm."""
    where = np.linalg.solve(volume.ijk_to_physical, (*point, 1.0))[:3]
    low = np.floor(where).astype(int)
    total = 0.0
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod(np.where(corner, where - low, 1 - (where - low)))
        i, j, k = low + corner
        assert min(i, j, k) >= 0
        total += weight * float(volume.voxels[k, j, i])
    return total


def expected(modality, name):
    return phantom._VALUES[phantom.LANDMARK_TISSUES[name]][phantom.MODALITIES.index(modality)]


@pytest.mark.parametrize("modality", phantom.MODALITIES)
def test_same_seed_same_voxels_and_seed_changes_noise_alone(modality):
    spacing = (14.0, 14.0, 14.0)
    one, two, other = (phantom.head(modality, seed, spacing=spacing) for seed in (3, 3, 4))
    assert np.array_equal(one.voxels, two.voxels)
    assert np.array_equal(one.ijk_to_physical, two.ijk_to_physical)
    assert not np.array_equal(one.voxels, other.voxels)
    clean = [phantom.head(modality, seed, noise=False, spacing=spacing).voxels for seed in (3, 4)]
    assert np.array_equal(*clean)
    assert not np.array_equal(clean[0], one.voxels)


def test_kind_units_and_types():
    kinds = {m: (head(m).modality, head(m).units, head(m).voxels.dtype, head(m).name) for m in phantom.MODALITIES}
    assert kinds == {
        "CT": ("CT", "HU", np.int16, "phantom CT"),
        "MR": ("MR", None, np.int16, "phantom MR"),
        "PET": ("PET", "SUV", np.float32, "phantom PET"),
    }
    with pytest.raises(KeyError):
        phantom.head("US")


def test_grids_differ_and_are_oblique():
    volumes = [head(m) for m in phantom.MODALITIES]
    directions = [v.ijk_to_physical[:3, :3] / v.spacing for v in volumes]
    for n, (volume, axes) in enumerate(zip(volumes, directions, strict=True)):
        assert np.allclose(axes.T @ axes, np.eye(3), atol=1e-9)
        assert np.abs(axes).max() < 0.9999  # along no axis of the patient
        assert np.linalg.norm(volume.ijk_to_physical[:3, 3]) > 50
        for m in range(n):
            assert not np.allclose(axes, directions[m], atol=0.02)
            assert volume.size_ijk != volumes[m].size_ijk
    handed = [np.linalg.det(axes) > 0 for axes in directions]
    assert True in handed and False in handed


@pytest.mark.parametrize("modality", phantom.MODALITIES)
def test_coarser_spacing_keeps_field_of_view_directions_and_centre(modality):
    fine, coarse = head(modality, fine=True), head(modality)
    assert np.allclose(coarse.spacing, COARSE[modality])
    assert np.allclose(fine.ijk_to_physical[:3, :3] / fine.spacing, coarse.ijk_to_physical[:3, :3] / coarse.spacing)
    sizes = [np.array(v.size_ijk) for v in (fine, coarse)]
    assert np.all(np.abs(sizes[0] * fine.spacing - sizes[1] * coarse.spacing) <= coarse.spacing)
    centres = [v.ijk_to_physical @ (*(n - 1) / 2, 1) for v, n in zip((fine, coarse), sizes, strict=True)]
    assert np.allclose(*centres)


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("modality", phantom.MODALITIES)
def test_landmarks_have_their_tissues_value(modality, fine):
    volume = head(modality, fine=fine)
    for name in DEEP:
        want, got = expected(modality, name), value_at(volume, phantom.LANDMARKS[name])
        if modality == "CT":
            assert abs(got - want) < max(12, 0.1 * abs(want)), name
        elif modality == "MR":  # the bias field is within a fifth
            assert abs(got - want) < 0.2 * want + 12, name
        elif name == "lesion" or name.startswith("eye"):  # PET blurs what is small
            assert abs(got - want) < 0.1 * want + 0.3, name


def test_coarse_and_fine_agree_in_place():
    """A shift of one fine voxel would show: compare at many points, and against shifted points."""
    rng = np.random.default_rng(0)
    points = np.array(phantom.HEAD_CENTRE) + rng.uniform(-60, 60, (300, 3)) * (1, 1, 0.6)
    for modality in phantom.MODALITIES:

        def profile(volume, offset=0.0):
            return np.array([value_at(volume, p + offset) for p in points])

        coarse, fine = profile(head(modality)), head(modality, fine=True)
        best = np.corrcoef(coarse, profile(fine))[0, 1]
        assert best > (0.8 if modality == "MR" else 0.9), modality
        for shift in (-4.0, 4.0):
            assert np.corrcoef(coarse, profile(fine, shift))[0, 1] < best


@pytest.mark.parametrize("modality", phantom.MODALITIES)
def test_lesion_under_noise_at_the_voxel_its_position_gives(modality):
    volume = head(modality, noise=True)
    where = np.linalg.solve(volume.ijk_to_physical, (*phantom.LESION_CENTRE, 1.0))[:3]
    i, j, k = np.rint(where).astype(int)
    tolerance = {"CT": 40, "MR": 0.1 * 850 + 60, "PET": 2.5}[modality]
    assert abs(float(volume.voxels[k, j, i]) - expected(modality, "lesion")) < tolerance


def test_skull_is_bright_in_ct_and_dark_in_mr():
    for name in ("petrous_left", "petrous_right"):
        assert value_at(head("CT"), phantom.LANDMARKS[name]) > 700
        assert value_at(head("MR"), phantom.LANDMARKS[name]) < 120
    # Straight up from the centre: the vault, between scalp and brain.
    line = np.array(phantom.HEAD_CENTRE) + np.linspace(60, 95, 141)[:, None] * (0, 0, 1)
    labels = phantom.tissue(line)
    for label in ("bone", "marrow", "fat", "skin", "air"):
        assert phantom.TISSUES.index(label) in labels, label
    bone = line[labels == phantom.TISSUES.index("bone")].mean(axis=0)
    assert value_at(head("CT", fine=True), bone) > 500
    assert value_at(head("MR", fine=True), bone) < 350


def test_labels_at_landmarks_and_shapes():
    points = np.array(list(phantom.LANDMARKS.values()))
    names = [phantom.TISSUES[n] for n in phantom.tissue(points)]
    assert dict(zip(phantom.LANDMARKS, names, strict=True)) == phantom.LANDMARK_TISSUES
    assert phantom.tissue(points.reshape(1, -1, 3)).shape == (1, len(points))
    assert phantom.tissue(points[0]).shape == ()
    radius = phantom.LESION_RADIUS
    for axis in np.eye(3):
        inside, outside = (phantom.tissue(phantom.LESION_CENTRE + axis * r) for r in (radius - 0.1, radius + 0.1))
        assert phantom.TISSUES[inside] == "lesion" != phantom.TISSUES[outside]


def test_a_mirrored_head_is_another_head():
    rng = np.random.default_rng(1)
    offset = rng.uniform(-70, 70, (4000, 3)) * (1, 1, 0.8)
    centre = np.array(phantom.HEAD_CENTRE)
    assert np.mean(phantom.tissue(centre + offset) != phantom.tissue(centre + offset * (-1, 1, 1))) > 0.2
    for modality in phantom.MODALITIES:
        lesion = phantom.LESION_CENTRE
        across = centre + (np.array(lesion) - centre) * (-1, 1, 1)
        volume = head(modality)
        assert abs(value_at(volume, lesion) - value_at(volume, across)) > {"CT": 10, "MR": 100, "PET": 3}[modality]


def test_fields_of_view():
    """MR leaves out the lowest part that CT has; PET holds more than CT; the corners hold air."""
    x, y, z = phantom.HEAD_CENTRE
    low = np.linalg.solve(head("MR").ijk_to_physical, (x, y, z - 72, 1.0))[1]
    assert low > head("MR").size_ijk[1]
    assert 0 <= np.linalg.solve(head("CT").ijk_to_physical, (x, y, z - 72, 1.0))[2] < head("CT").size_ijk[2]
    extents = {m: np.array(head(m).size_ijk) * head(m).spacing for m in phantom.MODALITIES}
    assert np.all(extents["PET"] > extents["CT"])
    assert head("CT").voxels[-1, 0, 0] == -1000
    assert head("MR").voxels[0, 0, 0] == 0


@pytest.mark.parametrize("modality", phantom.MODALITIES)
def test_bright_voxel(modality):
    volume = head(modality)
    before = volume.voxels.copy()
    bright, ijk, position = phantom.bright_voxel(volume, 3000)
    assert np.array_equal(volume.voxels, before)
    assert np.argwhere(bright.voxels != before).tolist() == [list(ijk[::-1])]
    assert bright.voxels[ijk[::-1]] == 3000
    assert np.allclose(position, (volume.ijk_to_physical @ (*ijk, 1.0))[:3])
    assert np.all(np.abs(np.linalg.solve(volume.ijk_to_physical, (*phantom.LESION_CENTRE, 1))[:3] - ijk) <= 0.5)
    assert (bright.modality, bright.units, bright.name) == (volume.modality, volume.units, volume.name)
