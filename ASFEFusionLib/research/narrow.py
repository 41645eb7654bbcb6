"""A trained network made narrower: of the two largest sizes, the channels that its pictures need least are taken out.

    python -m ASFEFusionLib.research.narrow DATA WEIGHTS --output FILE

It takes `configs.WIDE`, or what has been narrowed before, to `configs.COMPACT`. Channels come in blocks of 8 or 16 on a
processor, so that 20 cost what 32 do; most of the time goes at full size. The refinement that `COMPACT` ends with
begins as steps of no length. The narrower network goes on in training (`train DATA --initial FILE`), which repairs what
was lost. (Greedy structured pruning, by what the pictures lose; see Molchanov et al., "Pruning Convolutional Neural
Networks", ICLR 2017.)
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..network import COMPACT, ASFEFusion
from ..network.configs import NetworkConfig
from .data import batch, read_pairs

# Channels that belong together, by level: where they come out, and (what takes them in, where its share begins, in
# multiples of the level's channels).
GROUPS = (
    {
        "encoder, between": (["encoder.blocks.0.conv1", "encoder.blocks.0.bn1"], [("encoder.blocks.0.conv2", 0)]),
        "encoder": (
            ["encoder.blocks.0.conv2", "encoder.blocks.0.bn2", "head.coarser.0"],
            [("encoder.blocks.1.conv1", 0), ("head.from_own", 0)],
        ),
        "decoder": (["decoder.blocks.0.conv2", "decoder.blocks.0.bn2"], [("head.from_fused", 0)]),
        "head": (["head.from_own", "head.from_fused"], [("head.out", 0)]),
    },
    {
        "encoder, between": (["encoder.blocks.1.conv1", "encoder.blocks.1.bn1"], [("encoder.blocks.1.conv2", 0)]),
        "encoder": (
            ["encoder.blocks.1.conv2", "encoder.blocks.1.bn2", "head.coarser.1"],
            [("encoder.blocks.2.conv1", 0), ("head.coarser.0", 0), ("fusion.0.mix", 0), ("fusion.0.mix", 1)],
        ),
        "merged": (["fusion.0.mix"], [("decoder.blocks.0.conv1", -1)]),
        "decoder, between": (["decoder.blocks.0.conv1", "decoder.blocks.0.bn1"], [("decoder.blocks.0.conv2", 0)]),
    },
)
BATCHES = 3


def narrowed(
    net: ASFEFusion, channels: tuple[int, int], pictures: list[tuple[torch.Tensor, torch.Tensor]]
) -> ASFEFusion:
    """A network like `net` (of ours, in eval mode) with `channels` in its first two levels; `net` itself stays.

    `pictures`: pairs (N, 1, H, W) in [0, 1] that show what a channel is worth: each time the one goes without which
    they change least. What `net` lacks of the steps of `COMPACT`'s refinement is added, and changes nothing yet. Raises
    ValueError if `channels` are more than there are, or none of the two levels has more.
    """
    now = net.config.channels[:2]
    if any(not 0 < wanted <= wide for wanted, wide in zip(channels, now, strict=True)) or channels == now:
        raise ValueError(f"the first levels have {now} channels; fewer must stay, not {channels}")
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.inference_mode():
        wanted = [net(a, b) for a, b in pictures]
    config = net.config
    for level in range(2):
        if channels[level] < now[level]:
            kept = _needed(state, config, level, channels[level], list(zip(pictures, wanted, strict=True)))
            state = _cut(state, GROUPS[level], kept, now[level])
            config = _config(config, level, channels[level])
    result = ASFEFusion(replace(config, refinements=COMPACT.refinements))
    result.load_state_dict(result.refinement.state_dict(prefix="refinement.") | state)
    return result.eval()


def _needed(
    state: dict[str, torch.Tensor], config: NetworkConfig, level: int, channels: int, pictures: list[tuple]
) -> dict[str, list[int]]:
    """The channels of each group of a level that should stay. `pictures`: ((a, b), what they should give)."""
    wide = config.channels[level]
    trial = ASFEFusion(config).eval()
    bar = tqdm(total=len(GROUPS[level]) * (wide - channels), unit="channel", desc="Leaving out")
    kept = {}
    with torch.inference_mode(), bar:
        for group, (_, inputs) in GROUPS[level].items():
            left = list(range(wide))
            while len(left) > channels:
                change = {}
                for channel in left:
                    trial.load_state_dict(_without(state, inputs, channel, wide))
                    change[channel] = sum(float((trial(a, b) - f).square().mean()) for (a, b), f in pictures)
                worst = min(change, key=change.get)
                left.remove(worst)
                state = _without(state, inputs, worst, wide)
                bar.update()
            kept[group] = left
    return kept


def _config(config: NetworkConfig, level: int, channels: int) -> NetworkConfig:
    """`config` with so many channels in its first or second level."""

    def put(values: tuple[int, ...]) -> tuple[int, ...]:
        return (*values[:level], channels, *values[level + 1 :])

    (first, two), (second, up), *others = config.decoder
    decoder = ((channels, two), (second, channels)) if level == 0 else ((first, two), (channels, up))
    return replace(
        config,
        name=COMPACT.name,
        channels=put(config.channels),
        hidden=put(config.hidden),
        decoder=(*decoder, *others),
    )


def _place(weight: torch.Tensor, turn: int, wide: int) -> int:
    """Where the share of a group begins among the inputs of a weight: the turn-th, from behind if below 0."""
    return turn * wide if turn >= 0 else weight.shape[1] + turn * wide


def _without(
    state: dict[str, torch.Tensor], inputs: list[tuple[str, int]], channel: int, wide: int
) -> dict[str, torch.Tensor]:
    """Values where nothing takes that channel in."""
    state = dict(state)
    for module, turn in inputs:
        weight = state[f"{module}.weight"].clone()
        weight[:, _place(weight, turn, wide) + channel] = 0
        state[f"{module}.weight"] = weight
    return state


def _cut(
    state: dict[str, torch.Tensor], groups: dict[str, tuple], kept: dict[str, list[int]], wide: int
) -> dict[str, torch.Tensor]:
    state = dict(state)
    for group, (outputs, inputs) in groups.items():
        for module in outputs:
            for name in [n for n in state if n.startswith(f"{module}.") and state[n].ndim]:
                state[name] = state[name][kept[group]]
        # From behind: a weight's earlier shares stay where they are.
        for module, turn in sorted(inputs, key=lambda x: -x[1]):
            weight = state[f"{module}.weight"]
            start = _place(weight, turn, wide)
            gone = {start + i for i in range(wide) if i not in kept[group]}
            state[f"{module}.weight"] = weight[:, [i for i in range(weight.shape[1]) if i not in gone]]
    return state


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ASFEFusionLib.research.narrow", description=__doc__)
    parser.add_argument("data", type=Path, help="folder with CT-MRI, PET-MRI, SPECT-MRI")
    parser.add_argument("weights", help="file of weights of a wide network")
    parser.add_argument("--output", type=Path, required=True, help="file for the narrower network's weights")
    options = parser.parse_args()
    from ..network import load
    from ..network.weights import save

    net = load(options.weights)
    pairs = read_pairs(options.data, left_out=False, every=10)
    pictures = [batch(pairs, torch.Generator().manual_seed(seed))[:2] for seed in range(BATCHES)]
    narrow = narrowed(net, COMPACT.channels[:2], pictures)
    save(options.output, narrow, {"narrowed from": f"{net.weights_name}, SHA-256 {net.weights_hash}"})
    with torch.inference_mode():
        change = max(float((narrow(a, b) - net(a, b)).abs().max()) for a, b in pictures)
    print(f"{options.output}: pictures differ by up to {255 * change:.0f} of 255 levels; train it further")


if __name__ == "__main__":
    main()
