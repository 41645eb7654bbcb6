"""The authors' checkpoint: where in it each of our tensors (`configs.PAPER`) lies, and how they are put in.

The authors' code (Gu et al. 2024) is under no licence and none of it is here; the names of its tensors are facts about
its files. Levels, sources and experts count from 1 or 0 as follows, `L` a level from 0, `S` a source from 0:

| ours | theirs |
|---|---|
| encoder.inlayer, encoder.blocks.L.* | encoder.inlayer, encoder.block{L + 1}.* |
| encoder.pools.L.filt | encoder.block{L + 2}.down_anti.filt |
| fusion.L.casf.tokens.S.embed, .norm, .qkv | fusionnet{L + 1}.CASFusion.patchembed{S + 1}.proj, QKV_Block{S + 1}.norm1, .attn.qkv |
| fusion.L.casf.proj.S, .to_pixels | fusionnet{L + 1}.CASFusion.proj{S + 1}, depatch.projection.0 |
| fusion.L.aff.masks.S.mix, .mask, .bn | fusionnet{L + 1}.AFFusion{2 - S}.conv_layer, .conv_layer1, .bn (their 1 is b's) |
| fusion.L.sfef.slots, .norm, .slot_norm | fusionnet{L + 1}.SFEFusion.slot_embeds, .norm, .slot_norm |
| fusion.L.sfef.experts.E.0, .2 | fusionnet{L + 1}.SFEFusion.experts.experts.E.0, .3 |
| decoder.blocks.L.*, head.outlayer | conv_up{L + 1}.*, outlayer |

All else in the file is accepted and left: the transformer blocks' own projection, second norm and MLP, and a filter
before level 1, are in the authors' files and never used.
"""  # noqa: E501 - a table

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from ..errors import FusionError

# Keys that only the authors' layout has.
THEIRS = re.compile(r"(fusionnet\d|conv_up\d|encoder\.block\d)\.")
# Beginning of our name -> of theirs; {0} {1} are the numbers found there, {level} the first one plus 1, {below} plus 2,
# {source} the second plus 1, {other} the other source's.
RULES = [
    (r"encoder\.inlayer\.", "encoder.inlayer."),
    (r"encoder\.blocks\.(\d)\.", "encoder.block{level}."),
    (r"encoder\.pools\.(\d)\.", "encoder.block{below}.down_anti."),
    (r"fusion\.(\d)\.casf\.tokens\.(\d)\.embed\.", "fusionnet{level}.CASFusion.patchembed{source}.proj."),
    (r"fusion\.(\d)\.casf\.tokens\.(\d)\.norm\.", "fusionnet{level}.CASFusion.QKV_Block{source}.norm1."),
    (r"fusion\.(\d)\.casf\.tokens\.(\d)\.qkv\.", "fusionnet{level}.CASFusion.QKV_Block{source}.attn.qkv."),
    (r"fusion\.(\d)\.casf\.proj\.(\d)\.", "fusionnet{level}.CASFusion.proj{source}."),
    (r"fusion\.(\d)\.casf\.to_pixels\.", "fusionnet{level}.CASFusion.depatch.projection.0."),
    (r"fusion\.(\d)\.aff\.masks\.(\d)\.mix\.", "fusionnet{level}.AFFusion{other}.conv_layer."),
    (r"fusion\.(\d)\.aff\.masks\.(\d)\.mask\.", "fusionnet{level}.AFFusion{other}.conv_layer1."),
    (r"fusion\.(\d)\.aff\.masks\.(\d)\.bn\.", "fusionnet{level}.AFFusion{other}.bn."),
    (r"fusion\.(\d)\.sfef\.slots$", "fusionnet{level}.SFEFusion.slot_embeds"),
    (r"fusion\.(\d)\.sfef\.experts\.(\d)\.0\.", "fusionnet{level}.SFEFusion.experts.experts.{1}.0."),
    (r"fusion\.(\d)\.sfef\.experts\.(\d)\.2\.", "fusionnet{level}.SFEFusion.experts.experts.{1}.3."),
    (r"fusion\.(\d)\.sfef\.(norm|slot_norm)\.", "fusionnet{level}.SFEFusion.{1}."),
    (r"decoder\.blocks\.(\d)\.", "conv_up{level}."),
    (r"head\.outlayer\.", "outlayer."),
]


def is_published(content: object) -> bool:
    """Whether a loaded file looks like a checkpoint of the authors, whole or not."""
    return isinstance(content, dict) and any(isinstance(key, str) and THEIRS.match(key) for key in content)


def their_name(ours: str) -> str:
    """The authors' name of one of our tensors. Raises KeyError for a name that the `paper` config does not have."""
    for pattern, theirs in RULES:
        match = re.match(pattern, ours)
        if match:
            numbers = [int(n) if n.isdigit() else n for n in match.groups()]
            level = numbers[0] if numbers else 0
            source = numbers[1] if len(numbers) > 1 and isinstance(numbers[1], int) else 0
            extra = {"level": level + 1, "below": level + 2, "source": source + 1, "other": 2 - source}
            return theirs.format(*numbers, **extra) + ours[match.end() :]
    raise KeyError(ours)


def fill(net: torch.nn.Module, state: Mapping[str, object], path: object) -> None:
    """Puts the checkpoint's tensors into a net of the published layout; they become the net's own, without a copy.

    Only a tensor of another type than ours is copied. Raises FusionError "weights_incomplete", which names the tensors
    that are missing or of another shape as the checkpoint would.
    """
    wrong, found = [], {}
    for name, wanted in net.state_dict().items():
        theirs = their_name(name)
        tensor = state.get(theirs)
        if not isinstance(tensor, torch.Tensor):
            wrong.append(theirs)
        elif tensor.shape != wanted.shape:
            shapes = ("x".join(map(str, shape)) or "one number" for shape in (tensor.shape, wanted.shape))
            wrong.append("{} is {}, not {}".format(theirs, *shapes))
        else:
            found[name] = tensor.to(wanted.dtype)
    if wrong:
        names = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise FusionError("weights_incomplete", path=str(path), count=len(wrong), names=names)
    net.load_state_dict(found, assign=True)
