#!/usr/bin/env python3
"""PyTorch's side of inference.py: for each line read, so many batches from bytes to scores; written are the seconds of a
batch and a sum over the last scores.

The same work as ours: bytes normalised where the networks are, the backbone up to its second tap, the head, the distance
map, enlarged, averaged over 21 x 21, the largest 32 x 32 mean. BatchNorm is folded into the convolutions of both networks,
everything is channels last, both grids are bilinear weights times cells; copies to a GPU are asynchronous, from pinned
memory. Weights are random: they change no time.

Modes: tuned, or compiled: the same through torch.compile in mode max-autotune (which records CUDA graphs).
"""
import argparse
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from torch_step import BasicBlock, Bottleneck, Head

# Repeats, channels in and out, expansion, kernel, stride of the first; and the blocks whose outputs are the features.
STAGES = {
    "lite0": [(1, 32, 16, 1, 3, 1), (2, 16, 24, 6, 3, 2), (2, 24, 40, 6, 5, 2), (3, 40, 80, 6, 3, 2), (3, 80, 112, 6, 5, 1)],
    "b4": [(2, 48, 24, 1, 3, 1), (4, 24, 32, 6, 3, 2), (4, 32, 56, 6, 5, 2), (6, 56, 112, 6, 3, 2), (6, 112, 160, 6, 5, 1)],
}
TAPS = {"lite0": (4, 10), "b4": (9, 21)}
CHANNELS = {"lite0": 40 + 112, "b4": 56 + 160}


class Convolution(nn.Module):
    """A convolution with its BatchNorm folded in, padded so that a stride of 2 halves even sizes."""

    def __init__(self, inputs, outputs, kernel, stride=1, groups=1, act=None):
        super().__init__()
        total = kernel - stride
        self.uneven = (total // 2, total - total // 2) * 2 if total % 2 else None
        padding = 0 if self.uneven else total // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
        self.act = act or (lambda x: x)

    def forward(self, x):
        return self.act(self.conv(F.pad(x, self.uneven) if self.uneven else x))


class Block(nn.Module):
    def __init__(self, inputs, outputs, expand, kernel, stride, act, squeeze):
        super().__init__()
        hidden, squeezed = inputs * expand, max(inputs // 4, 1)
        self.expand = Convolution(inputs, hidden, 1, act=act) if expand > 1 else nn.Identity()
        self.depthwise = Convolution(hidden, hidden, kernel, stride, hidden, act)
        self.gate = None
        if squeeze:
            self.gate = nn.Sequential(nn.Conv2d(hidden, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, hidden, 1), nn.Sigmoid())
        self.project = Convolution(hidden, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        h = self.depthwise(self.expand(x))
        if self.gate is not None:
            h = h * self.gate(h.mean((2, 3), keepdim=True))
        y = self.project(h)
        return y + x if self.residual else y


class Backbone(nn.Module):
    def __init__(self, name):
        super().__init__()
        act, squeeze = (F.silu, True) if name == "b4" else (F.relu6, False)
        stem, blocks = STAGES[name][0][1], []
        for repeats, inputs, outputs, expand, kernel, stride in STAGES[name]:
            for i in range(repeats):
                first = i == 0
                blocks.append(Block(inputs if first else outputs, outputs, expand, kernel, stride if first else 1, act, squeeze))
        self.stem, self.blocks, self.taps = Convolution(3, stem, 3, 2, act=act), nn.ModuleList(blocks), TAPS[name]

    def forward(self, x):
        h, taps = self.stem(x), []
        for i, block in enumerate(self.blocks):
            h = block(h)
            if i in self.taps:
                taps.append(h)
        a, b = taps
        return torch.cat([a, F.interpolate(b, a.shape[2:], mode="bilinear", align_corners=True)], 1)


def fold(head):
    """A head in evaluation mode without BatchNorm."""
    head.eval()
    for block in head.blocks:
        pairs = {BasicBlock: [("conv1", "bn1"), ("conv2", "bn2")]}
        mobile = [("expand", "bn1"), ("depthwise", "bn2"), ("project", "bn3")]
        for conv, norm in pairs.get(type(block), mobile if isinstance(block, Bottleneck) else []):
            setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
            setattr(block, norm, nn.Identity())
    return head


class Scorer(nn.Module):
    def __init__(self, backbone, kind, size):
        super().__init__()
        self.backbone, self.size = Backbone(backbone), size
        self.head = fold(Head(kind, size // 8, CHANNELS[backbone], True))
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 127.0))
        self.register_buffer("std", torch.full((1, 3, 1, 1), 128.0))

    def forward(self, pixels):
        # [N, S, S, 3] seen as [N, 3, S, S] is channels last as it is.
        kind = self.head.recover.weight.dtype
        x = ((pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std).to(kind)
        features = self.backbone(x)
        distance = (self.head(features).float() - features.float()).norm(dim=1, keepdim=True)
        full = F.interpolate(distance, (self.size, self.size), mode="bilinear", align_corners=True)
        smooth = F.avg_pool2d(full, 21, 1, 10)
        return F.avg_pool2d(smooth, min(32, self.size), 1).amax((1, 2, 3))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", choices=["crad", "crad-s", "grad"])
    arguments.add_argument("--backbone", choices=STAGES, default="lite0")
    arguments.add_argument("--batch", type=int, default=32)
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    arguments.add_argument("--mode", choices=["tuned", "compiled"], default="tuned")
    o = arguments.parse_args()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = o.precision != "f32"
    cuda = o.device == "cuda"
    model = Scorer(o.backbone, o.model, o.size).eval()
    model = model.to(o.device, torch.bfloat16 if o.precision == "bf16" else torch.float32, memory_format=torch.channels_last)
    run = torch.compile(model, mode="max-autotune") if o.mode == "compiled" else model
    pictures = [torch.randint(0, 256, (o.batch, o.size, o.size, 3), dtype=torch.uint8) for _ in range(4)]
    if cuda:
        pictures = [p.pin_memory() for p in pictures]
    with torch.inference_mode():
        for line in sys.stdin:
            batches = int(line)
            started = time.perf_counter()
            for i in range(batches):
                scores = run(pictures[i % 4].to(o.device, non_blocking=True)).to("cpu", non_blocking=True)
            if cuda:
                torch.cuda.synchronize()
            print((time.perf_counter() - started) / batches, float(scores.sum()), flush=True)


if __name__ == "__main__":
    main()
