"""The `paper` config against what the published network gives for a known fill of its checkpoint."""

import json

import numpy as np
import pytest
import torch

from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.network import PAPER, ASFEFusion, load
from ASFEFusionLib.network.published import UNUSED, fill, our_name


def filled(number, name, shape):
    """The fill that the reference's description gives, for one tensor."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    if name.endswith(".filt"):
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        return (torch.outer(row, row) / 64).repeat(shape[0], 1, 1, 1)
    x = np.random.default_rng(1000 + number).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif len(shape) >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(("bias", "running_mean")):
        x = 0.02 * x
    else:
        x = 1 + 0.02 * x
    return torch.from_numpy(x.astype(np.float32))


def test_reference_forward(real_published):
    """Largest error when last run: 8.5e-6 of the fused slice, 0 of AFF, 5e-7 of CASF."""
    if real_published is None:
        return
    layout = json.loads((real_published / "checkpoint_layout.json").read_text())
    reference = np.load(real_published / "reference_forward.npz")
    with torch.device("meta"):
        net = ASFEFusion(PAPER)
    state = {name: filled(number, name, shape) for number, (name, shape, _) in enumerate(layout)}
    assert all(UNUSED.search(name) or our_name(name) or "experts.experts" in name for name in state)
    fill(net, state, "the reference")
    del state
    net.eval()
    a, b = (torch.from_numpy(reference[name])[None, None] for name in ("image_a", "image_b"))

    def close(name, value):
        expected = reference[name]
        corner = value[0, :4, :8, :8] if expected.ndim == 3 else value[0, 0]
        assert np.abs(corner.numpy() - expected).max() < 1e-4, name

    with torch.inference_mode():
        x, y = (net.encoder(z)[3] for z in (a, b))
        close("encoder_level4_first", x)
        close("casf_level4", net.fusion[3].casf(x, y))
        close("aff2_of_first_level4", torch.fft.irfft2(net.fusion[3].aff.masks[0](torch.fft.rfft2(x)), s=(32, 32)))
        close("fusion_level4", net.fusion[3](x, y))
        close("fused", net(a, b))


def test_a_checkpoint_that_is_not_whole(tmp_path):
    torch.save({"fusionnet4.SFEFusion.slot_embeds": torch.zeros(4, 256, 512)}, tmp_path / "part.pt")
    with pytest.raises(FusionError) as caught:
        load(tmp_path / "part.pt")
    assert caught.value.code == "weights_incomplete"
    assert "encoder.inlayer.weight" in str(caught.value)
