"""A narrower network: of the channels those go that its pictures need least."""

import pytest
import torch

from ASFEFusionLib.network import ASFEFusion
from ASFEFusionLib.network.configs import COMPACT, WIDE
from ASFEFusionLib.research.narrow import GROUPS, narrowed

IDLE = (3, 7)


@pytest.fixture(scope="module")
def pictures():
    rng = torch.Generator().manual_seed(0)
    return [tuple(torch.rand(1, 1, 32, 32, generator=rng) for _ in range(2))]


@pytest.fixture(scope="module")
def net():
    """Weights of which nothing takes in two channels of each group."""
    torch.manual_seed(1)
    net = ASFEFusion(WIDE).eval()
    wide = WIDE.channels[1]
    with torch.no_grad():
        for _, inputs in GROUPS.values():
            for module, turn in inputs:
                weight = net.get_submodule(module).weight
                start = turn * wide if turn >= 0 else weight.shape[1] + turn * wide
                weight[:, [start + channel for channel in IDLE]] = 0
    return net


def test_channels_that_do_nothing_go_and_the_pictures_stay(net, pictures):
    wide = WIDE.channels[1]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    narrow = narrowed(net, wide - len(IDLE), pictures)
    assert narrow.config.channels[1] == narrow.config.hidden[1] == narrow.config.decoder[1][0] == wide - len(IDLE)
    assert narrow.config.channels[2:] == WIDE.channels[2:]
    for a, b in pictures:
        assert (narrow(a, b) - net(a, b)).abs().max() < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_wide_network_becomes_the_compact_one(net, pictures):
    assert narrowed(net, COMPACT.channels[1], pictures).config == COMPACT


def test_the_next_to_go_changes_the_pictures(net, pictures):
    narrow = narrowed(net, WIDE.channels[1] - len(IDLE) - 1, pictures)
    assert max((narrow(a, b) - net(a, b)).abs().max() for a, b in pictures) > 1e-5


@pytest.mark.parametrize("channels", (0, WIDE.channels[1], 64))
def test_it_must_become_narrower(net, pictures, channels):
    with pytest.raises(ValueError, match="fewer must stay"):
        narrowed(net, channels, pictures)
