"""A narrower network: of the channels those go that its pictures need least."""

from dataclasses import replace

import pytest
import torch

from ASFEFusionLib.network import ASFEFusion
from ASFEFusionLib.network.configs import COMPACT, WIDE
from ASFEFusionLib.research.narrow import GROUPS, narrowed

IDLE = (3, 7)
WIDER = ((12, 2), (16, 12), (24, 24))


@pytest.fixture(scope="module")
def pictures():
    rng = torch.Generator().manual_seed(0)
    return [tuple(torch.rand(1, 1, 32, 32, generator=rng) for _ in range(2))]


@pytest.fixture(scope="module")
def net():
    """Weights of which nothing takes in two channels of each group."""
    torch.manual_seed(1)
    net = ASFEFusion(WIDE).eval()
    with torch.no_grad():
        for wide, groups in zip(WIDE.channels, GROUPS, strict=False):
            for _, inputs in groups.values():
                for module, turn in inputs:
                    weight = net.get_submodule(module).weight
                    start = turn * wide if turn >= 0 else weight.shape[1] + turn * wide
                    weight[:, [start + channel for channel in IDLE]] = 0
    return net


@pytest.mark.parametrize("levels", [(0,), (1,), (0, 1)])
def test_channels_that_do_nothing_go_and_the_pictures_stay(net, pictures, levels):
    wanted = tuple(wide - len(IDLE) * (level in levels) for level, wide in enumerate(WIDE.channels[:2]))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    narrow = narrowed(net, wanted, pictures)
    assert narrow.config.channels == narrow.config.hidden == (*wanted, *WIDE.channels[2:])
    assert narrow.config.decoder[:2] == ((wanted[0], 2), (wanted[1], wanted[0]))
    for a, b in pictures:
        assert (narrow(a, b) - net(a, b)).abs().max() < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_wide_network_becomes_the_compact_one(net, pictures):
    assert narrowed(net, COMPACT.channels[:2], pictures).config == COMPACT


def test_a_refinement_that_is_there_stays(pictures):
    torch.manual_seed(2)
    net = ASFEFusion(replace(COMPACT, channels=(12, 16, 32), hidden=(12, 16, 32), decoder=WIDER)).eval()
    torch.nn.init.normal_(net.refinement.steps[1].out.weight)
    narrow = narrowed(net, COMPACT.channels[:2], pictures)
    assert narrow.config == COMPACT
    assert torch.equal(narrow.refinement.steps[1].out.weight, net.refinement.steps[1].out.weight)


@pytest.mark.parametrize("level", [0, 1])
def test_the_next_to_go_changes_the_pictures(net, pictures, level):
    wanted = tuple(wide - (len(IDLE) + 1) * (n == level) for n, wide in enumerate(WIDE.channels[:2]))
    narrow = narrowed(net, wanted, pictures)
    assert max((narrow(a, b) - net(a, b)).abs().max() for a, b in pictures) > 1e-5


@pytest.mark.parametrize("channels", [(0, 16), (8, 0), WIDE.channels[:2], (64, 16), (8, 64)])
def test_it_must_become_narrower(net, pictures, channels):
    with pytest.raises(ValueError, match="fewer must stay"):
        narrowed(net, channels, pictures)
