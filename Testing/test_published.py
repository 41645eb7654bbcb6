"""The `paper` config: a checkpoint's tensors in their places, and what the published network gives for them."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import published_plain as plain
import pytest
import torch

from ASFEFusionLib.errors import FusionError
from ASFEFusionLib.network import PAPER, ASFEFusion, load, weights
from ASFEFusionLib.network.published import fill, their_name

SMALL = plain.Widths((4, 6, 8, 10), (3, 4, 5, 6), 5, 2, 8, 2, 3, 5, 2, ((3, 4), (4, 6), (5, 7), (6, 8)))
CONFIG = replace(
    PAPER,
    channels=SMALL.channels,
    hidden=SMALL.hidden,
    stem=SMALL.stem,
    patches=(SMALL.patch,) * 4,
    token_width=SMALL.token,
    heads=SMALL.heads,
    experts=SMALL.experts,
    slots=SMALL.slots,
    expansion=SMALL.expansion,
    decoder=SMALL.decoder,
    multiple=16,
)


def checkpoint(widths=SMALL):
    return {name: plain.filled(n, name, shape) for n, (name, shape) in enumerate(plain.layout(widths).items())}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A checkpoint of small widths in a file, for which `load` takes the small config."""
    monkeypatch.setattr(weights, "PAPER", CONFIG)
    torch.save(checkpoint(), tmp_path / "paper.pt")
    return tmp_path / "paper.pt"


def test_a_loaded_checkpoint_gives_what_the_formulas_give(small):
    """Against the whole network written out apart; random weights, so a tensor in a wrong place shows."""
    net = load(small)
    assert not net.training
    assert net.weights_name == "paper"
    a, b = torch.rand(2, 2, 1, 32, 48, generator=torch.Generator().manual_seed(5))
    expected = plain.forward(checkpoint(), SMALL, a, b)
    with torch.inference_mode():
        assert (net(a, b) - expected).abs().max() < 1e-5
        assert (net(b, a) - expected).abs().max() > 1e-2  # not symmetric, as published
        assert net(a[..., :30, :41], b[..., :30, :41]).shape == (2, 1, 30, 41)


def test_every_tensor_of_ours_has_its_own_in_the_checkpoint():
    with torch.device("meta"):
        ours = ASFEFusion(PAPER).state_dict()
    theirs = plain.layout()
    named = {their_name(name): tuple(tensor.shape) for name, tensor in ours.items()}
    assert len(named) == len(ours)
    assert all(theirs[name] == shape for name, shape in named.items())
    unused = {name for name in theirs if name not in named}
    assert all(any(part in name for part in ("attn.proj", "norm2", "mlp", "block1.down_anti")) for name in unused)
    assert sum(math.prod(shape) for shape in theirs.values()) > 175_717_545  # with buffers
    with pytest.raises(KeyError):
        their_name("head.from_own.weight")


def test_the_layout_is_the_authors(real_published):
    if real_published is None:
        return
    listed = json.loads((real_published / "checkpoint_layout.json").read_text(encoding="utf-8"))
    assert {name: tuple(shape) for name, shape, _ in listed} == plain.layout()


def refused(path):
    with pytest.raises(FusionError) as caught:
        load(path)
    assert caught.value.code == "weights_incomplete"
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_that_is_not_whole(small):
    state = checkpoint()
    del state["fusionnet4.SFEFusion.slot_embeds"]
    state["conv_up2.conv1.weight"] = torch.zeros(4, 22, 3)
    state["outlayer.bias"] = [0.0]
    torch.save(state, small)
    message = refused(small)
    assert "lacks 3 tensors" in message
    assert "fusionnet4.SFEFusion.slot_embeds" in message
    assert "conv_up2.conv1.weight is 4x22x3, not 4x19x3x3" in message
    assert "outlayer.bias" in message
    torch.save({"fusionnet4.SFEFusion.slot_embeds": torch.zeros(3, 5, 20)}, small)
    assert "encoder.inlayer.weight" in refused(small)


def test_other_keys_and_types_are_taken(small):
    expected = load(small).state_dict()
    state = {name: tensor.double() for name, tensor in checkpoint().items()}
    state["epoch"], state["fusionnet9.more.weight"] = 3, torch.zeros(2)
    torch.save(state, small)
    for name, tensor in load(small).state_dict().items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])


def test_a_file_that_is_written_over_changes_no_loaded_net(small):
    net = load(small)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    torch.save({name: tensor + 1 for name, tensor in checkpoint().items()}, small)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_checkpoint_is_held_once():
    state = checkpoint()
    with torch.device("meta"):
        net = ASFEFusion(CONFIG)
    fill(net, state, "memory")
    for name, tensor in net.state_dict().items():
        assert tensor.data_ptr() == state[their_name(name)].data_ptr(), name


# What a test of memory runs apart: the network, its inner corners, and the most that was ever resident.
APART = """
import sys
import numpy as np, torch
from ASFEFusionLib.network import aff, load

torch.set_num_threads(1)
checkpoint, reference, output = sys.argv[1:]
net, given, kept = load(checkpoint), np.load(reference), {}
a, b = (torch.from_numpy(given[name])[None, None] for name in ("image_a", "image_b"))

def corner(name):
    def keep(module, inputs, result):
        kept[name] = result[0, :4, :8, :8].clone()
    return keep

level = net.fusion[3]
level.casf.register_forward_hook(corner("casf_level4"))
level.register_forward_hook(corner("fusion_level4"))
level.register_forward_hook(lambda module, inputs, result: kept.update(first=inputs[0][:1].clone()))
with torch.inference_mode():
    kept["fused"] = net(a, b)[0, 0]
    first = kept.pop("first")
    parts = level.aff.masks[0](aff.spectrum(first, "backward"))
    kept["encoder_level4_first"] = first[0, :4, :8, :8]
    kept["aff2_of_first_level4"] = aff.picture(parts, first.shape[-2:], "backward", True)[0, :4, :8, :8]
np.savez(output, **kept)
with open("/proc/self/status") as file:  # not getrusage: that one begins with the parent's peak
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
"""


def test_reference_forward_and_its_memory(real_published, tmp_path):
    """The file is loaded and run in a process of its own. When last run: error 9e-6, AFF 0, CASF 5e-7; 1.3 GB."""
    if real_published is None:
        return
    listed = json.loads((real_published / "checkpoint_layout.json").read_text(encoding="utf-8"))
    state = {name: plain.filled(n, name, shape) for n, (name, shape, _) in enumerate(listed)}
    path, output = tmp_path / "published.pt", tmp_path / "kept.npz"
    torch.save(state, path)
    del state
    try:
        arguments = [path, real_published / "reference_forward.npz", output]
        run = subprocess.run(
            [sys.executable, "-c", APART, *map(str, arguments)], capture_output=True, text=True, check=False
        )
    finally:
        path.unlink()
    assert run.returncode == 0, run.stderr
    reference, kept = np.load(real_published / "reference_forward.npz"), np.load(output)
    inner = ["encoder_level4_first", "casf_level4", "aff2_of_first_level4", "fusion_level4"]
    assert set(kept) == {"fused", *inner}
    for name in kept:
        assert np.abs(kept[name] - reference[name]).max() < 1e-4, name
    if sys.platform == "linux":
        assert int(run.stdout) * 1024 < 1.6e9  # with pixel-by-slot logits or a second copy of the weights: over 2 GB
