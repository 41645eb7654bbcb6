"""The network without one of its three parts."""

import pytest
import torch

from ASFEFusionLib.network import COMPACT, ASFEFusion
from ASFEFusionLib.network.aff import AFF
from ASFEFusionLib.network.casf import CASF
from ASFEFusionLib.network.refinement import Refinement
from ASFEFusionLib.network.sfef import SFEF
from ASFEFusionLib.research.ablate import VARIANTS, leave_out, seconds

KINDS = {"casf": CASF, "aff": AFF, "sfef": SFEF, "refinement": Refinement}


def made():
    torch.manual_seed(3)
    net = ASFEFusion(COMPACT).eval()
    for step in net.refinement.steps:  # that of an untrained network goes nowhere
        torch.nn.init.constant_(step.out.weight, 0.02)
    return net


@pytest.mark.parametrize("name", VARIANTS)
def test_the_parts_that_are_left_out_are_gone_and_no_others(name):
    whole, net, parts = made(), made(), VARIANTS[name]
    leave_out(net, parts)
    for part, kind in KINDS.items():
        count = sum(isinstance(module, kind) for module in net.modules())
        assert count == (0 if part in parts else sum(isinstance(module, kind) for module in whole.modules()))
    rng = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 1, 48, 64, generator=rng)
    with torch.inference_mode():
        f, reference = net(a, b), whole(a, b)
        assert torch.allclose(f, net(b, a), atol=1e-4)  # rounding, of which the refinement makes more
    assert f.shape == a.shape
    assert torch.equal(f, reference) == (not parts)


def test_time_is_that_of_each(monkeypatch):
    from ASFEFusionLib.research import ablate

    monkeypatch.setattr(ablate, "SIDE", 32)
    monkeypatch.setattr(ablate, "ROUNDS", 2)
    before = torch.get_num_threads()
    found = seconds({"x": lambda a, b: a, "y": made()})
    torch.set_num_threads(before)
    assert 0 < found["x"] < found["y"]
