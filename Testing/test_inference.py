"""The network made ready to run: the same pictures as the one that was trained gives."""

from dataclasses import replace

import numpy as np
import published_plain as plain
import pytest
import torch

from ASFEFusionLib import phantom
from ASFEFusionLib.network import COMPACT, ASFEFusion, aff, inference, load
from ASFEFusionLib.network.encoder import MeanPool
from ASFEFusionLib.network.fast_aff import FastAFF, matrices
from ASFEFusionLib.network.inference import Grown, Pairs, Pixelwise, doubled, prepared, spread
from ASFEFusionLib.network.weights import find


@pytest.fixture(scope="module")
def trained():
    return load()


def same(x, y):
    """To rounding, of which the refinement's ratios of weak edges make up to a thousandth at single pixels."""
    difference = (x - y).abs()
    return difference.max() < 2e-3 and difference.mean() < 5e-5


@pytest.fixture(scope="module")
def ready():
    return prepared(load())


def pair(count, height, width, seed=0):
    return torch.rand(2, count, 1, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def slices():
    """Heads, (n, 1, 256, 256) in [0, 1] twice: CT for bone or soft tissue beside MR, sharp edges and all."""
    ct = phantom.head("CT", spacing=(0.9, 0.9, 12.0)).voxels[2:12:3].astype(np.float32)
    other = phantom.head("CT", seed=3, spacing=(0.9, 0.9, 12.0)).voxels[2:12:3].astype(np.float32)
    bone, soft = np.clip((ct + 200) / 2200, 0, 1), np.clip((ct + 160) / 400, 0, 1)
    mr = np.clip(1 - np.abs(other - 30) / 60, 0, 1)
    return tuple(torch.from_numpy(x)[:, None] for x in (np.concatenate([bone, soft]), np.concatenate([mr, mr])))


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (64, 64), (100, 256), (130, 37), (256, 256), (300, 129)])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])  # as it is made for one; run here on the CPU
def test_the_same_at_any_size(trained, ready, size, device):
    net = ready if device == "cpu" else prepared(load(), device)
    a, b = pair(2, *size)
    with torch.inference_mode():
        assert same(net(a, b), trained(a, b))


def test_at_the_ends_of_a_slice_too(trained, ready):
    """Bright, dark and in between right up to the ends, where upsampling and convolution continue it in two ways."""
    a, b = torch.ones(1, 1, 40, 56), torch.zeros(1, 1, 40, 56)
    a[..., ::2], b[..., :3, :] = 0.2, 0.9
    with torch.inference_mode():
        assert same(ready(a, b), trained(a, b))


def test_the_same_of_heads(trained, ready, slices):
    with torch.inference_mode():
        assert same(ready(*slices), trained(*slices))


@pytest.mark.parametrize(("lanes", "expected"), [(8, 0), (16, 4)])
def test_few_channels_go_in_pairs_where_the_processor_has_room(monkeypatch, trained, slices, lanes, expected):
    monkeypatch.setattr(inference, "lanes", lambda: lanes)
    net = prepared(load())
    assert sum(isinstance(module, Pairs) for module in net.modules()) == expected
    with torch.inference_mode():
        assert same(net(*slices), trained(*slices))


@pytest.mark.parametrize("bias", [True, False])
def test_pairs_are_a_convolution(bias):
    conv = torch.nn.Conv2d(5, 4, 3, padding=1, bias=bias)
    x = torch.rand(2, 5, 7, 12).contiguous(memory_format=torch.channels_last)
    found = Pairs(conv)(x)
    assert torch.allclose(found, conv(x), atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_pixelwise_is_a_convolution():
    conv = torch.nn.Conv2d(5, 4, 1)
    x = torch.rand(2, 5, 7, 11)
    assert torch.allclose(Pixelwise(conv)(x), conv(x), atol=1e-6)


def test_a_network_of_another_kind_loses_its_batch_norm_alone(monkeypatch, tmp_path):
    """The published one: in float32, with its logits in pieces."""
    from test_published import CONFIG, SMALL, checkpoint

    from ASFEFusionLib.network import weights

    monkeypatch.setattr(weights, "PAPER", CONFIG)
    torch.save(checkpoint(), tmp_path / "paper.pt")
    net = prepared(load(tmp_path / "paper.pt"))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in net.modules())
    assert not any(level.sfef.whole for level in net.fusion)
    a, b = pair(2, 32, 48, seed=5)
    with torch.inference_mode():
        assert (net(a, b) - plain.forward(checkpoint(), SMALL, a, b)).abs().max() < 1e-5


def test_a_narrow_margin_takes_no_short_cut():
    """Where a slice's own pixels would see the other ends that `Grown` has."""
    torch.manual_seed(0)
    net = ASFEFusion(replace(COMPACT, margin=2)).eval().requires_grad_(False)
    a, b = pair(1, 44, 60)
    with torch.inference_mode():
        expected = net(a, b)
        assert (prepared(net)(a, b) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (4, 1), (7, 6)])
def test_doubled_is_bilinear(size):
    x = torch.rand(2, 3, *size)
    expected = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(doubled(x), expected, atol=1e-6)


def test_grown_is_a_convolution_of_what_was_upsampled():
    x, weight = torch.rand(2, 3, 6, 7), torch.randn(5, 3, 3, 3)
    large = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    expected = 1 + torch.nn.functional.conv2d(large, weight, padding=1)
    into = torch.ones(2, 5, 12, 14).contiguous(memory_format=torch.channels_last)
    found = spread(Grown(weight)(x), into)
    assert torch.allclose(found[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2], atol=1e-5)


def test_sums_stand_for_means_without_rounding(trained, ready):
    """The next convolution takes the quarter; what the encoder gives is the same to the rounding of batch norm."""
    assert any(isinstance(module, MeanPool) for module in trained.modules())
    assert not any(isinstance(module, MeanPool) for module in ready.modules())
    x = pair(2, 48, 64)[0]
    with torch.inference_mode():
        for found, expected in zip(ready.encoder(x), trained.encoder(x), strict=True):
            assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("side", [2, 6, 36])
def test_matrices_transform_and_bring_back(side):
    across, down, back, up = matrices(side)
    x = torch.rand(side, side, dtype=torch.double)
    expected = torch.fft.rfft2(x, norm="ortho")
    parts = (down @ (across @ x.T).T.reshape(2 * side, -1)).view(2, side, -1)
    assert torch.allclose(torch.complex(*parts), expected)
    # Of a spectrum that no real picture has: what torch leaves out of it, too.
    any_parts = torch.rand(2, side, side // 2 + 1, dtype=torch.double)
    expected = torch.fft.irfft2(torch.complex(*any_parts), s=(side, side), norm="ortho")
    turned = back @ any_parts.permute(2, 0, 1).reshape(-1, side)
    assert torch.allclose(up @ turned.view(2, side, side).permute(2, 0, 1).reshape(2 * side, side), expected)


def test_windows_of_an_odd_side_have_no_matrices():
    with pytest.raises(ValueError, match="even side"):
        matrices(9)


@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last])
def test_fast_aff(kind):
    """Also where a value's channels do not lie together."""
    slow = prepared(load(), "mps").fusion[1].aff
    x = torch.randn(6, 32, 36, 36, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=kind)
    with torch.inference_mode():
        found, expected = FastAFF(slow, 36)(x), slow(x)
    assert torch.allclose(found, expected, atol=1e-6 * float(expected.abs().max()))


def test_a_network_that_runs_takes_the_short_cut(ready):
    assert isinstance(ready.fusion[1].aff, FastAFF)


@pytest.mark.parametrize(
    "other",
    [{"window": 0}, {"window": 36}, {"shared": False}, {"normalised_spectrum": False}, {"published_inverse": True}],
)
def test_only_where_it_is_the_same(other):
    config = replace(COMPACT, **other)
    assert FastAFF.stands_for(aff.AFF(COMPACT, 32), COMPACT.window >> 2)
    assert not FastAFF.stands_for(aff.AFF(config, 32), config.window >> 2)


def test_transforms_go_to_the_cpu_where_there_are_no_complex_numbers(trained, monkeypatch):
    """On a simulated device: one that has no complex tensors."""

    class Away(torch.Tensor):
        """A tensor on that device until it is brought to the CPU."""

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.Tensor.cpu:
                return args[0].as_subclass(torch.Tensor)
            assert "fft" not in str(function)
            assert function not in (torch.complex, torch.view_as_real)
            return super().__torch_function__(function, types, args, kwargs or {})

    x = torch.rand(2, 4, 8, 8)
    monkeypatch.setattr(aff, "NOT_COMPLEX", {"cpu"})
    parts = aff.spectrum(x.as_subclass(Away), "ortho")
    there = parts.as_subclass(Away)
    assert torch.allclose(aff.picture(there, (8, 8), "ortho", False).as_subclass(torch.Tensor), x, atol=1e-6)
    monkeypatch.setattr(aff, "NOT_COMPLEX", set())
    with pytest.raises(AssertionError):
        aff.spectrum(x.as_subclass(Away), "ortho")
    with pytest.raises(AssertionError):
        aff.picture(there, (8, 8), "ortho", False)


def test_a_torch_without_onednn(trained, ready):
    """As on many Macs: convolutions of many slices then leave their channels apart in memory."""
    a, b = pair(16, 48, 40)
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=False):
        assert same(ready(a, b), trained(a, b))


def test_training_form_is_as_it_was(trained):
    """Names of its tensors as in the file; gradients reach each of them, in autocast too; running means follow."""
    state = torch.load(find(), weights_only=True)["state"]
    net = ASFEFusion(COMPACT)
    assert set(net.state_dict()) == set(state)
    net.load_state_dict(state)
    net.train()
    a, b = pair(2, 48, 80)
    for reduced in (False, True):
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            net(a, b).float().square().mean().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
        # A bias before batch norm has no say, and the scores' own bias cancels.
        silent = [name for name, p in net.named_parameters() if p.grad.abs().max() == 0]
        assert not [name for name in silent if "bias" not in name]
    assert (net.encoder.blocks[0].bn1.running_mean != trained.encoder.blocks[0].bn1.running_mean).any()
