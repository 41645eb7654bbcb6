"""The authors' checkpoint: which of its tensors is which of ours (`configs.PAPER`), by name."""

from __future__ import annotations

import re

import torch

from ..errors import FusionError

# A key that only the authors' layout has.
MARK = "fusionnet4.SFEFusion.slot_embeds"
# Held and never used: the transformer blocks' own projection, second norm and MLP, and a filter before level 1.
UNUSED = re.compile(r"QKV_Block\d\.(attn\.proj|norm2|mlp)\.|^encoder\.block1\.down_anti\.")
# Their name -> ours. Levels, sources and blocks count from 1 there, from 0 here; {0} and {1} are the numbers less one.
RULES = [
    (r"encoder\.inlayer\.", "encoder.inlayer."),
    (r"encoder\.block(\d)\.down_anti\.", "encoder.pools.{previous}."),
    (r"encoder\.block(\d)\.", "encoder.blocks.{0}."),
    (r"conv_up(\d)\.", "decoder.blocks.{0}."),
    (r"outlayer\.", "head.outlayer."),
    (r"fusionnet(\d)\.CASFusion\.patchembed(\d)\.proj\.", "fusion.{0}.casf.tokens.{1}.embed."),
    (r"fusionnet(\d)\.CASFusion\.QKV_Block(\d)\.norm1\.", "fusion.{0}.casf.tokens.{1}.norm."),
    (r"fusionnet(\d)\.CASFusion\.QKV_Block(\d)\.attn\.qkv\.", "fusion.{0}.casf.tokens.{1}.qkv."),
    (r"fusionnet(\d)\.CASFusion\.proj(\d)\.", "fusion.{0}.casf.proj.{1}."),
    (r"fusionnet(\d)\.CASFusion\.depatch\.projection\.0\.", "fusion.{0}.casf.to_pixels."),
    # Their AFFusion1 belongs to the second source.
    (r"fusionnet(\d)\.AFFusion(\d)\.conv_layer\.", "fusion.{0}.aff.masks.{other}.mix."),
    (r"fusionnet(\d)\.AFFusion(\d)\.conv_layer1\.", "fusion.{0}.aff.masks.{other}.mask."),
    (r"fusionnet(\d)\.AFFusion(\d)\.bn\.", "fusion.{0}.aff.masks.{other}.bn."),
    (r"fusionnet(\d)\.SFEFusion\.slot_embeds", "fusion.{0}.sfef.slots"),
    (r"fusionnet(\d)\.SFEFusion\.norm\.", "fusion.{0}.sfef.norm."),
    (r"fusionnet(\d)\.SFEFusion\.slot_norm\.", "fusion.{0}.sfef.slot_norm."),
]
EXPERT = re.compile(r"fusionnet(\d)\.SFEFusion\.experts\.experts\.(\d)\.([03])\.(weight|bias)")


def our_name(key: str) -> str | None:
    """Our name of one of their tensors; None if no rule knows it."""
    for pattern, name in RULES:
        match = re.match(pattern, key)
        if match:
            numbers = [int(n) - 1 for n in match.groups()]
            extra = {"previous": numbers[0] - 1 if numbers else 0, "other": 1 - numbers[1] if len(numbers) > 1 else 0}
            return name.format(*numbers, **extra) + key[match.end() :]
    return None


def translate(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The authors' state dict under our names; the experts' linear layers are stacked, (experts, in, out)."""
    ours: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, torch.Tensor]] = {}
    for key, tensor in state.items():
        expert = EXPERT.fullmatch(key)
        if expert:
            level, number, layer, kind = expert.groups()
            name = f"fusion.{int(level) - 1}.sfef.{kind}{1 if layer == '0' else 2}"
            experts.setdefault(name, {})[int(number)] = tensor.T if kind == "weight" else tensor[None]
        elif not UNUSED.search(key):
            name = our_name(key)
            if name:
                ours[name] = tensor
    for name, parts in experts.items():
        ours[name] = torch.stack([parts[n] for n in sorted(parts)])
    return ours


def fill(net: torch.nn.Module, state: dict[str, torch.Tensor], path: object) -> None:
    """Puts a published state dict into a `paper` net without copying it.

    Raises FusionError "weights_incomplete", which names tensors that are missing or of another shape.
    """
    ours, wanted = translate(state), net.state_dict()
    wrong = [name for name, tensor in wanted.items() if name not in ours or ours[name].shape != tensor.shape]
    if wrong:
        names = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise FusionError("weights_incomplete", path=str(path), count=len(wrong), names=names)
    net.load_state_dict({name: ours[name] for name in wanted}, assign=True)
