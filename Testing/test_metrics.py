"""The fusion metrics against values worked by hand, their gradients, and the peers' figures where the data are."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy
import sewar
import torch
from PIL import Image
from sewar.utils import Filter

from ASFEFusionLib.research import metrics

SHARED = Path(__file__).resolve().parents[2] / "shared"
SIDE = 48
SMOOTH = [name for name in metrics.METRICS if name not in ("EN", "MI")]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def image(rows):
    return torch.tensor(rows, dtype=torch.float64)[None, None]


def noise(count=1):
    return torch.rand(count, 1, SIDE, SIDE, dtype=torch.float64)


def slices(count=1):
    """A bright disc with texture on black, as a medical slice, and another one."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE, dtype=torch.float64)] * 2, indexing="ij")
    disc = (x * x + y * y < 0.5).double()
    return disc * (0.3 + 0.5 * noise(count)), disc * (0.5 + 0.3 * torch.sin(9 * x)).expand(count, 1, SIDE, SIDE)


def test_identical_images():
    x = noise()
    assert metrics.ssim(x, x).item() == pytest.approx(1, abs=1e-9)
    assert metrics.ssim_pair(x, x, x).item() == pytest.approx(1, abs=1e-9)
    assert metrics.vif_pair(x, x, x).item() == pytest.approx(2, abs=1e-5)
    assert metrics.mef_ssim(x, x, x).item() == pytest.approx(1, abs=1e-6)
    assert metrics.cc(x, x, x).item() == pytest.approx(1, abs=1e-6)
    assert metrics.nabf(x, x, x).item() == 0
    ceiling = 0.9994 / (1 + math.exp(-7.5)) * 0.9879 / (1 + math.exp(-4.4))
    assert metrics.qabf(x, x, x).item() == pytest.approx(ceiling, abs=1e-6)


def test_stripes_and_ramp():
    stripes = image([[0, 1] * 4] * 8)
    assert metrics.spatial_frequency(stripes).item() == pytest.approx(255)
    assert metrics.standard_deviation(stripes).item() == pytest.approx(127.5)
    assert metrics.entropy(stripes).item() == pytest.approx(1)
    ramp = image([[0.1 * column for column in range(8)]] * 8)
    assert metrics.average_gradient(ramp).item() == pytest.approx(25.5 / math.sqrt(2) * 64 / 49)


def test_constant_image():
    flat = torch.full((1, 1, SIDE, SIDE), 0.5, dtype=torch.float64)
    for name in ("EN", "SD", "SF", "AG", "MI", "Qabf", "Nabf", "SCD"):
        assert metrics.METRICS[name](flat, flat, flat).item() == pytest.approx(0, abs=1e-9), name
    assert metrics.ssim(flat, flat / 2).item() == pytest.approx((2 * 0.125 + 1e-4) / (0.3125 + 1e-4))


def test_mutual_information_counts_what_is_shared():
    f = image([[0, 0, 1, 1]] * 4)
    same, apart = 0.5 * f, image([[0, 1, 0, 1]] * 4)
    assert metrics.mutual_information(same, apart, f).item() == pytest.approx(1)
    assert metrics.mutual_information(same, f, f).item() == pytest.approx(2)


def test_correlations_and_psnr():
    a, b = noise(), noise()
    assert metrics.scd(a, b, a + b).item() == pytest.approx(2, abs=1e-5)
    assert metrics.cc(a, 1 - a, a).item() == pytest.approx(0, abs=1e-6)
    assert metrics.psnr(0 * a, 0 * a + 0.2, 0 * a + 0.1).item() == pytest.approx(20)


def test_ssim_of_a_single_window():
    """11 x 11 pixels make one window, whose weighted moments are plain sums."""
    x, y = (torch.rand(1, 1, 11, 11, dtype=torch.float64) for _ in range(2))
    line = torch.exp(-(torch.arange(-5.0, 6, dtype=torch.float64) ** 2) / 4.5)
    weight = torch.outer(line, line) / line.sum() ** 2
    mx, my = (weight * x).sum(), (weight * y).sum()
    vx, vy = (weight * (x - mx) ** 2).sum(), (weight * (y - my) ** 2).sum()
    covariance = (weight * (x - mx) * (y - my)).sum()
    wanted = (2 * mx * my + 1e-4) * (2 * covariance + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))
    assert metrics.ssim(x, y).item() == pytest.approx(wanted.item(), abs=1e-9)


def test_qabf_of_a_fainter_edge():
    """A copy at half contrast: every gradient ratio 1/2 and no turn, where there is an edge."""
    a = noise()
    wanted = 0.9994 / 2 * 0.9879 / (1 + math.exp(-4.4))
    assert metrics.qabf(a, a, a / 2).item() == pytest.approx(wanted, abs=1e-6)


def test_soft_nabf_tells_strong_edges_the_way_down():
    """The published one says nothing of how near an edge is to being too strong; a narrow sigmoid comes to the same."""
    a, b = slices()
    f = torch.maximum(a, b) * 1.02
    assert metrics.nabf(a, b, f, 1e-4).item() == pytest.approx(metrics.nabf(a, b, f).item(), rel=0.01)
    f = (0.999 * a).requires_grad_()
    assert metrics.nabf(a, b, f).item() == 0
    metrics.nabf(a, b, f, 0.5).sum().backward()
    # Less contrast, weaker edges: the sigmoid wins by it, and says so.
    assert (f.grad * f.detach()).sum() > 0.01


@pytest.mark.parametrize("way", range(3))
def test_lattice_is_the_amplitude_of_what_alternates(way):
    y, x = torch.meshgrid(torch.arange(40), torch.arange(50), indexing="ij")
    sign = 1.0 - 2 * ((x, y, x + y)[way] % 2).double()
    flat = torch.full((1, 1, 40, 50), 0.5, dtype=torch.float64)
    ramp = flat + 0.01 * (x - 20).double()
    f = ramp + 0.03 * sign
    found = metrics.lattice(flat, ramp, f)
    assert found.shape == (1, 3, 34, 44)
    assert found[:, way].min().item() == pytest.approx(0.03, abs=1e-9)
    assert found[:, [n for n in range(3) if n != way]].max().item() < 1e-9
    # Only what is beyond the sources counts, whichever of them has it.
    for sources in ((flat, flat + 0.02 * sign), (flat - 0.02 * sign, flat)):
        assert metrics.lattice(*sources, f)[:, way].max().item() == pytest.approx(0.01, abs=1e-9)
    assert metrics.lattice(f, flat, ramp + 0.02 * sign).max().item() < 1e-9


def test_invented_noise_raises_nabf():
    a, b = slices()
    f = torch.maximum(a, b)
    assert metrics.nabf(a, b, f + 0.2 * (noise() - 0.5)).item() > 10 * metrics.nabf(a, b, f).item()


def test_batch_equals_singles():
    a, b = slices(3)
    f = (a + b) / 2
    together = metrics.score(a, b, f)
    assert " ".join(together) == "EN SD SF AG MI VIF CC SCD PSNR Qabf Nabf SSIM MEFSSIM"
    for i in range(3):
        alone = metrics.score(*(x[i : i + 1] for x in (a, b, f)))
        for name, value in together.items():
            assert value.shape == (3,)
            assert value[i].item() == pytest.approx(alone[name].item(), abs=1e-9), name


def eight_bit_slices():
    """Two textured slices of bytes on black, and what a fusion with some noise makes of them; 64 x 48."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:64, :48] / 48
    inside = (x - 0.5) ** 2 + (y - 0.7) ** 2 < 0.2
    a = inside * (90 + 80 * np.sin(9 * x + 2 * y) + rng.normal(0, 8, x.shape))
    b = inside * (120 + 90 * np.cos(7 * y) + rng.normal(0, 4, x.shape))
    f = 0.7 * np.maximum(a, b) + 0.2 * a + rng.normal(0, 3, x.shape) * (x > 0.4)
    return [np.clip(np.rint(v), 0, 255).astype(np.uint8) for v in (a, b, f)]


def shannon(*images):
    counts, _ = np.histogramdd(np.stack([v.ravel() for v in images], 1), bins=256, range=[(-0.5, 255.5)] * len(images))
    return scipy.stats.entropy(counts.ravel(), base=2)


def information(x, f):
    return shannon(x) + shannon(f) - shannon(x, f)


def correlation(x, y):
    return np.corrcoef(x.astype(float).ravel(), y.astype(float).ravel())[0, 1]


def edges(x, scale=1.0):
    """Strength, and orientation in (-pi/2, pi/2], by scipy's Sobel."""
    gx, gy = (scipy.ndimage.sobel(x.astype(float), axis, mode="mirror") for axis in (1, 0))
    with np.errstate(divide="ignore", invalid="ignore"):
        angle = np.arctan(gy / gx)
    # Without any gradient, or with one straight up and down, the angle is a right one.
    return scale * np.hypot(gx, gy), np.where(gx == 0, np.sign(gy) * np.pi / 2 + (gy == 0) * np.pi / 2, angle)


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def plain_qabf(a, b, f):
    gain, total = 0.0, 0.0
    strength_f, angle_f = edges(f, 1 / 255)
    for x in (a, b):
        strength, angle = edges(x, 1 / 255)
        stronger = np.maximum(strength, strength_f)
        ratio = np.where(stronger > 0, np.minimum(strength, strength_f) / np.where(stronger > 0, stronger, 1), 1)
        turned = 1 - np.abs(angle - angle_f) / (np.pi / 2)
        gain += (0.9994 * sigmoid(15 * (ratio - 0.5)) * 0.9879 * sigmoid(22 * (turned - 0.8)) * strength).sum()
        total += strength.sum()
    return gain / total


def plain_nabf(a, b, f):
    strength_f, angle_f = edges(f, 1 / 8)
    found = [edges(x, 1 / 8) for x in (a, b)]
    artefact = (strength_f > found[0][0]) & (strength_f > found[1][0])
    lost, total = 0.0, 0.0
    for strength, angle in found:
        stronger = np.maximum(strength, strength_f)
        ratio = np.where(stronger > 0, np.minimum(strength, strength_f) / np.where(stronger > 0, stronger, 1), 1)
        turned = np.abs(np.abs(angle - angle_f) - np.pi / 2) / (np.pi / 2)
        kept_strength, kept_angle = 0.9999 * sigmoid(19 * (ratio - 0.5)), 0.9995 * sigmoid(22 * (turned - 0.5))
        weight = np.where(strength >= 2, strength**1.5, 0.001)
        lost += (artefact * (1 - np.sqrt(kept_strength * kept_angle)) * weight).sum()
        total += weight.sum()
    return lost / total


def plain_mef_ssim(a, b, f):
    """Patch by patch, as Ma, Zeng and Wang write it: contrast of the stronger, structure of both."""
    line = np.exp(-(np.arange(-5.0, 6) ** 2) / 4.5)
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            patches = [v[top : top + 11, left : left + 11].astype(float) for v in (a, b)]
            patches = [p - p.mean() for p in patches]
            contrasts = [np.linalg.norm(p) for p in patches]
            wanted = np.zeros((11, 11))
            if max(contrasts) > 0:
                consistency = min(0.99, np.linalg.norm(sum(patches)) / sum(contrasts))
                power = min(10, np.tan(np.pi / 2 * consistency))
                structures = [p / c if c else p for p, c in zip(patches, contrasts, strict=True)]
                shares = [c**power / sum(d**power for d in contrasts) for c in contrasts]
                blended = sum(share * s for share, s in zip(shares, structures, strict=True))
                wanted = max(contrasts) * blended / np.linalg.norm(blended)
            got = f[top : top + 11, left : left + 11].astype(float)
            wanted, got = wanted - (window * wanted).sum(), got - (window * got).sum()
            spread = (window * wanted**2).sum() + (window * got**2).sum() + (0.03 * 255) ** 2
            values.append((2 * (window * wanted * got).sum() + (0.03 * 255) ** 2) / spread)
    return np.mean(values)


def sewar_ssim(x, f):
    return sewar.ssim(x, f, fltr_specs={"fltr": Filter.GAUSSIAN, "sigma": 1.5, "ws": 11})[0]


def plain_sf(f):
    across, down = (np.diff(f.astype(float), axis=axis) for axis in (1, 0))
    return np.sqrt((across**2).mean() + (down**2).mean())


def plain_ag(f):
    down, across = np.gradient(f.astype(float))
    return np.sqrt((down**2 + across**2) / 2).sum() / ((f.shape[0] - 1) * (f.shape[1] - 1))


def plain_psnr(a, b, f):
    a, b, f = (v.astype(float) for v in (a, b, f))
    return 10 * np.log10(255**2 / (((a - f) ** 2).mean() / 2 + ((b - f) ** 2).mean() / 2))


def plain_scd(a, b, f):
    a, b, f = (v.astype(float) for v in (a, b, f))
    return correlation(f - b, a) + correlation(f - a, b)


INDEPENDENT = {
    "EN": lambda a, b, f: shannon(f),
    "SD": lambda a, b, f: np.std(f.astype(float)),
    "SF": lambda a, b, f: plain_sf(f),
    "AG": lambda a, b, f: plain_ag(f),
    "MI": lambda a, b, f: information(a, f) + information(b, f),
    "VIF": lambda a, b, f: sewar.vifp(a, f) + sewar.vifp(b, f),
    "CC": lambda a, b, f: (correlation(a, f) + correlation(b, f)) / 2,
    "SCD": plain_scd,
    "PSNR": plain_psnr,
    "Qabf": plain_qabf,
    "Nabf": plain_nabf,
    "SSIM": lambda a, b, f: (sewar_ssim(a, f) + sewar_ssim(b, f)) / 2,
    "MEFSSIM": plain_mef_ssim,
}


@pytest.mark.parametrize("name", metrics.METRICS)
def test_independent_implementations(name):
    """Libraries (sewar, scipy, numpy) where they have the metric, else its definition in plain loops, on bytes."""
    images = eight_bit_slices()
    ours = metrics.METRICS[name](*(torch.tensor(v[None, None] / 255) for v in images)).item()
    assert ours == pytest.approx(INDEPENDENT[name](*images), rel=2e-5)
    assert abs(ours) > 1e-3


def steps(*levels):
    """A volume of slices of 10 x 10, each of one grey level (0..255) in the middle 4 x 5 and black around."""
    volume = torch.zeros(len(levels), 1, 10, 10, dtype=torch.float64)
    volume[:, :, 3:7, 2:7] = torch.tensor(levels, dtype=torch.float64)[:, None, None, None] / 255
    return volume


def flicker(a, b, f):
    return metrics.flicker(a, b, f).tolist()


def test_flicker_worked_by_hand():
    a, b = steps(40, 40, 90, 90), steps(100, 100, 100, 60)
    assert flicker(a, b, steps(70, 82, 82, 82)) == pytest.approx([12, 0, 0])  # lighter where nothing changed
    assert flicker(a, b, steps(70, 70, 120, 120)) == pytest.approx([0, 0, 0])  # with a source, as far as it goes
    assert flicker(a, b, steps(70, 70, 130, 130)) == pytest.approx([0, 10, 0])  # further than any source goes
    assert flicker(a, b, steps(70, 70, 70, 23)) == pytest.approx([0, 0, 7])
    assert flicker(a, b, steps(40, 100, 90, 60)) == pytest.approx([60, 0, 0])  # the choice falls otherwise
    assert flicker(a, b, a[:1].expand_as(a)) == pytest.approx([0, 0, 0])  # too steady is no flicker


def test_flicker_counts_light_in_the_black_and_divides_by_what_the_sources_show():
    a = b = steps(50, 50, 50)
    f = a.clone()
    f[1, :, 0, :] = 6 / 255  # 10 voxels of the black; the sources show 20
    assert flicker(a, b, f) == pytest.approx([3, 3])
    appearing = steps(0, 50)  # what is on either side counts
    assert flicker(appearing, appearing, steps(0, 60)) == pytest.approx([10])
    assert flicker(appearing.flip(0), appearing.flip(0), steps(60, 0)) == pytest.approx([10])
    black = torch.zeros_like(a)
    assert flicker(black, black, black) == [0, 0]


def test_no_flicker_of_steady_rules():
    a, b = slices(6)[0], slices(6)[0].roll(1, 0)
    for f in (a, b, (a + b) / 2, torch.maximum(a, b), torch.minimum(a, b)):
        assert max(flicker(a, b, f)) < 1e-9
    uneven = a * torch.tensor([1, 0.8] * 3, dtype=torch.float64)[:, None, None, None]
    assert min(flicker(a, b, uneven)) > 2


def test_some_metrics_alone():
    a, b = slices(2)
    assert list(metrics.score(a, b, a, ["CC", "Nabf"])) == ["CC", "Nabf"]


def test_scoring_in_inference_mode_spoils_no_later_loss():
    f = torch.rand(1, 1, SIDE, SIDE + 1, dtype=torch.float64)
    with torch.inference_mode():
        metrics.score(f, f, f)
    metrics.ssim(f, f.clone().requires_grad_()).sum().backward()


def test_filter_in_blocks_is_a_convolution():
    x = torch.rand(1, 1, 150, 90, dtype=torch.float64)
    line = torch.exp(-(torch.arange(-5.0, 6, dtype=torch.float64) ** 2) / 4.5)
    kernel = (torch.outer(line, line) / line.sum() ** 2)[None, None]
    torch.testing.assert_close(metrics._blur(x, 11, 1.5), torch.nn.functional.conv2d(x, kernel))


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_on_black(name, dtype):
    a, b = (x.to(dtype) for x in slices(2))
    black = torch.zeros_like(a)
    for sources, fused in (
        ((a, b), torch.maximum(a, b)),
        ((a, b), a),
        ((a, b), black),
        ((black, black), a),
        ((black, black), black),
        ((a, black), black + 0.7),
    ):
        inputs = [x.clone().requires_grad_() for x in (*sources, fused)]
        value = metrics.METRICS[name](*inputs)
        assert value.isfinite().all()
        # Not every metric looks at the sources.
        for gradient in torch.autograd.grad(value.sum(), inputs, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_is_the_slope(name):
    a, b = noise(), noise()
    f, step = (a + b) / 2 + 0.1 * noise(), 1e-7 * (noise() - 0.5)
    f.requires_grad_()
    metric = metrics.METRICS[name]
    (gradient,) = torch.autograd.grad(metric(a, b, f).sum(), f)
    rise = (metric(a, b, f + step) - metric(a, b, f - step)).item() / 2
    assert rise == pytest.approx((gradient * step).sum().item(), rel=1e-3, abs=1e-13)


GREY = np.array([0.299, 0.587, 0.114])


def left_out_pairs(task, names):
    """Sources and, by name, the two plain fusions as files of 8 bits hold them: colour fused in Y, chroma put back."""
    stacks = {"AVG": [], "MAX": []}
    sources = []
    for name in names:
        functional, anatomical = (
            np.asarray(Image.open(SHARED / "data/hmif_train" / task / folder / name), dtype=np.float64)
            for folder in task.split("-")
        )
        colour = functional.ndim == 3
        grey = np.round(functional @ GREY) if colour else functional
        sources.append((grey, anatomical))
        # The mean was rounded in float32, where a half may fall to either side.
        mean = (grey.astype(np.float32) / 255 + anatomical.astype(np.float32) / 255) / 2
        for method, fused in (("AVG", np.round(mean * 255)), ("MAX", np.maximum(grey, anatomical))):
            picture = np.round(np.clip(functional + (fused - grey)[..., None], 0, 255)) if colour else None
            stacks[method].append(np.round(picture @ GREY) if colour else fused)

    def batch(images):
        return torch.tensor(np.stack(images))[:, None] / 255

    a, b = (batch(images) for images in zip(*sources, strict=True))
    return a, b, {method: batch(images) for method, images in stacks.items()}


@pytest.mark.parametrize(("task", "tolerance"), [("CT-MRI", 4e-4), ("PET-MRI", 3.5e-3), ("SPECT-MRI", 2e-3)])
def test_plain_fusions_score_as_published(task, tolerance):
    """AVG and MAX on the left-out pairs, against the figures in shared/. How chroma was put back and rounded is not
    known to the last bit, hence the wider tolerance of colour, and its slow metrics are left to CT."""
    if not (SHARED / "peers_left_out.json").exists():
        warnings.warn("no shared/ beside the checkout: the metrics were not compared on real data", stacklevel=1)
        return
    published = json.loads((SHARED / "peers_left_out.json").read_text(encoding="utf-8"))
    a, b, fusions = left_out_pairs(task, published["pairs"][task])
    slow = {"VIF", "SSIM", "MEFSSIM", "Nabf"} if task != "CT-MRI" else set()
    for method, f in fusions.items():
        for name in metrics.METRICS.keys() - slow:
            # A few images at a time stay in the processor's cache.
            parts = zip(a.split(3), b.split(3), f.split(3), strict=True)
            value = torch.cat([metrics.METRICS[name](*part) for part in parts]).mean().item()
            wanted = published["scores"][method][task][name]
            assert value == pytest.approx(wanted, rel=tolerance, abs=3e-5), (method, name)
