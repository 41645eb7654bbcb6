"""The published network once more, for tests: plain formulas on a checkpoint's own keys, with any widths.

Written from the description of the method (Gu et al. 2024) and of its files, apart from `ASFEFusionLib.network`: no
module, no config, no mapping of names. Everything is held whole, so it is for small widths.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F


class Widths(NamedTuple):
    """Sizes of the network; the defaults are the published ones."""

    channels: tuple = (112, 160, 208, 256)
    hidden: tuple = (32, 56, 80, 104)
    stem: int = 64
    patch: int = 16
    token: int = 256
    heads: int = 8
    experts: int = 4
    slots: int = 256
    expansion: int = 4
    decoder: tuple = ((8, 16), (56, 112), (80, 160), (104, 208))


PUBLISHED = Widths()


def layout(s=PUBLISHED):
    """Every key of a checkpoint with its shape, also those that are never used."""
    keys = {}

    def linear(name, outs, ins, *kernel, bias=True):
        keys[f"{name}.weight"] = (outs, ins, *kernel)
        if bias:
            keys[f"{name}.bias"] = (outs,)

    def norm(name, width, batch=True):
        keys[f"{name}.weight"] = keys[f"{name}.bias"] = (width,)
        if batch:
            keys[f"{name}.running_mean"] = keys[f"{name}.running_var"] = (width,)
            keys[f"{name}.num_batches_tracked"] = ()

    def block(name, ins, hidden, outs):
        linear(f"{name}.conv1", hidden, ins, 3, 3)
        linear(f"{name}.conv2", outs, hidden, 3, 3)
        norm(f"{name}.bn1", hidden)
        norm(f"{name}.bn2", outs)

    linear("encoder.inlayer", s.stem, 1, 1, 1)
    inputs = (s.stem, *s.channels[:3])
    above = [*(out for _, out in s.decoder[1:]), 0]
    for level in range(4):
        c, name = s.channels[level], f"fusionnet{level + 1}"
        block(f"encoder.block{level + 1}", inputs[level], s.hidden[level], c)
        keys[f"encoder.block{level + 1}.down_anti.filt"] = (inputs[level], 1, 4, 4)
        block(f"conv_up{level + 1}", 2 * c + above[level], *s.decoder[level])
        for source in (1, 2):
            linear(f"{name}.AFFusion{source}.conv_layer", 2 * c, 2 * c, 1, 1, bias=False)
            norm(f"{name}.AFFusion{source}.bn", 2 * c)
            linear(f"{name}.AFFusion{source}.conv_layer1", 1, 2, 7, 7, bias=False)
            linear(f"{name}.CASFusion.patchembed{source}.proj", s.token, c, s.patch, s.patch)
            inner = f"{name}.CASFusion.QKV_Block{source}"
            norm(f"{inner}.norm1", s.token, batch=False)
            linear(f"{inner}.attn.qkv", 3 * s.token, s.token, bias=False)
            linear(f"{inner}.attn.proj", s.token, s.token)
            norm(f"{inner}.norm2", s.token, batch=False)
            linear(f"{inner}.mlp.fc1", 4 * s.token, s.token)
            linear(f"{inner}.mlp.fc2", s.token, 4 * s.token)
            linear(f"{name}.CASFusion.proj{source}", s.token, s.token)
        linear(f"{name}.CASFusion.depatch.projection.0", s.patch**2 * c, s.token)
        keys[f"{name}.SFEFusion.slot_embeds"] = (s.experts, s.slots, 2 * c)
        keys[f"{name}.SFEFusion.norm.gamma"] = keys[f"{name}.SFEFusion.slot_norm.gamma"] = (2 * c,)
        for expert in range(s.experts):
            linear(f"{name}.SFEFusion.experts.experts.{expert}.0", 2 * s.expansion * c, 2 * c)
            linear(f"{name}.SFEFusion.experts.experts.{expert}.3", 2 * c, 2 * s.expansion * c)
    linear("outlayer", 1, s.decoder[0][1], 1, 1)
    return keys


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


def forward(w, s, a, b):  # noqa: PLR0915 - one formula after another
    """The fused slice of a, b (N, 1, H, W) with the tensors `w` of a checkpoint."""

    def conv(x, name, stride=1, padding=0):
        return F.conv2d(x, w[f"{name}.weight"], w.get(f"{name}.bias"), stride, padding)

    def dense(x, name):
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def bn(x, name):
        mean, var = (w[f"{name}.running_{kind}"][:, None, None] for kind in ("mean", "var"))
        weight, bias = (w[f"{name}.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def block(x, name):
        for n in (1, 2):
            x = bn(conv(x, f"{name}.conv{n}", padding=1), f"{name}.bn{n}")
        return x

    def encode(x):
        features = []
        x = conv(x, "encoder.inlayer")
        for level in range(1, 5):
            if level > 1:
                x = F.pad(F.max_pool2d(x, 2, 1), (1, 2, 1, 2), mode="reflect")
                x = F.conv2d(x, w[f"encoder.block{level}.down_anti.filt"], stride=2, groups=x.shape[1])
                x = F.gelu(x)
            x = F.gelu(block(x, f"encoder.block{level}"))
            features.append(x)
        return features

    def casf(x, y, name):
        maps, values = [], []
        for source, z in ((1, x), (2, y)):
            tokens = conv(z, f"{name}.patchembed{source}.proj", stride=s.patch).flatten(2).transpose(1, 2)
            inner = f"{name}.QKV_Block{source}"
            tokens = F.layer_norm(tokens, (s.token,), w[f"{inner}.norm1.weight"], w[f"{inner}.norm1.bias"])
            q, k, v = (
                t.unflatten(-1, (s.heads, -1)).transpose(1, 2) for t in dense(tokens, f"{inner}.attn.qkv").chunk(3, -1)
            )
            maps.append((q @ k.transpose(-1, -2) / math.sqrt(s.token / s.heads)).softmax(-1))
            values.append(v)
        crossed = [maps[0] @ values[1], maps[1] @ values[0]]
        o = sum(dense(c.transpose(1, 2).flatten(2), f"{name}.proj{n}") for n, c in enumerate(crossed, 1)) / 2
        o = dense(o, f"{name}.depatch.projection.0")
        n, c, height, width = x.shape
        o = o.view(n, height // s.patch, width // s.patch, s.patch, s.patch, c)
        return x + y + torch.einsum("nrcijk->nkricj", o).reshape(n, c, height, width)

    def aff(x, name):
        c, height, width = x.shape[1:]
        spectrum = torch.fft.rfft2(x)
        z = torch.stack([spectrum.real, spectrum.imag], 2).flatten(1, 2)
        z = F.relu(bn(conv(z, f"{name}.conv_layer"), f"{name}.bn"))
        mask = torch.sigmoid(conv(torch.stack([z.mean(1), z.amax(1)], 1), f"{name}.conv_layer1", padding=3))
        z = (z * mask).unflatten(1, (c, 2)).permute(0, 1, 3, 4, 2)
        # As coded: two rows of the spectrum are taken for its real and imaginary parts.
        return torch.fft.irfft2(torch.complex(z[:, :, 0].contiguous(), z[:, :, 1].contiguous()), s=(height, width))

    def sfef(t, name):
        def rms(x, gamma):
            return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) * math.sqrt(x.shape[-1]) * w[f"{name}.{gamma}"]

        n, width, rows, columns = t.shape
        tokens = rms(t.flatten(2).transpose(1, 2), "norm.gamma")
        slots = rms(w[f"{name}.slot_embeds"], "slot_norm.gamma").flatten(0, 1)
        logits = tokens @ slots.T
        inputs = logits.softmax(1).transpose(1, 2) @ tokens
        answers = []
        for e, part in enumerate(inputs.split(s.slots, 1)):
            expert = f"{name}.experts.experts.{e}"
            answers.append(dense(F.gelu(dense(part, f"{expert}.0")), f"{expert}.3"))
        mixed = logits.softmax(2) @ torch.cat(answers, 1)
        return mixed.transpose(1, 2).reshape(n, width, rows, columns)

    x = None
    both = list(zip(encode(a), encode(b), strict=True))
    for level in (4, 3, 2, 1):
        first, second = both[level - 1]
        name = f"fusionnet{level}"
        frequency = aff(first, f"{name}.AFFusion2") + aff(second, f"{name}.AFFusion1")
        fused = sfef(torch.cat([casf(first, second, f"{name}.CASFusion"), frequency], 1), f"{name}.SFEFusion")
        x = block(fused if x is None else torch.cat([x, fused], 1), f"conv_up{level}")
        if level > 1:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = F.gelu(x)
    return conv(x, "outlayer")
