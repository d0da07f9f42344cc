#!/usr/bin/env python3
"""PyTorch's side of compare.py: for each line read, as many training steps as it says; written are the seconds of a step by
the wall clock, the last loss, and the seconds of a step by the clock of the device. The last line, after the input ends, is
the peak resident memory of the process in MiB.

Modes, all with the same mathematics as ours, checked by the fixtures of this repository:
  published  the operations of the public code as they stand: channels first, grid_sample on the whole global grid,
             f32 with PyTorch's defaults, AdamW over lists of tensors
  tuned      channels last, fused hard-swish, both grids as bilinear weights times cells, fused AdamW, the precision asked
             for (bf16: autocast)
  compiled   tuned, through torch.compile in mode max-autotune
"""
import argparse
import resource
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F


class BasicBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class Bottleneck(nn.Module):
    def __init__(self, c, e, tuned):
        super().__init__()
        self.expand, self.project = nn.Conv2d(c, e, 1, bias=False), nn.Conv2d(e, c, 1, bias=False)
        self.depthwise = nn.Conv2d(e, e, 3, padding=1, groups=e, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(e), nn.BatchNorm2d(e), nn.BatchNorm2d(c)
        self.reduce, self.excite = nn.Linear(e, e // 4, bias=False), nn.Linear(e // 4, e, bias=False)
        self.swish = F.hardswish if tuned else lambda x: x * F.relu6(x + 3) / 6
        self.sigmoid = F.hardsigmoid if tuned else lambda x: F.relu6(x + 3) / 6

    def forward(self, x):
        t = self.bn2(self.depthwise(self.swish(self.bn1(self.expand(x)))))
        gate = self.sigmoid(self.excite(F.relu(self.reduce(t.mean((2, 3))))))
        return x + self.bn3(self.project(self.swish(t * gate[:, :, None, None])))


def bilinear_weights(coord, side):
    """Weights of all cells of a grid at coordinates [..., 2]; corners not aligned, zero outside."""
    cells = torch.arange(side, dtype=coord.dtype, device=coord.device)
    x, y = (((coord[..., i] + 1) * side - 1) / 2 for i in (0, 1))
    wx, wy = ((1 - (p[..., None] - cells).abs()).clamp(min=0) for p in (x, y))
    return (wy[..., :, None] * wx[..., None, :]).flatten(-2)


class Head(nn.Module):
    def __init__(self, kind, side, c, tuned):
        super().__init__()
        values = c * side * side
        self.tuned = tuned
        self.local_grid = nn.Parameter(torch.randn(c, 64) * (2 / ((c + 1) * 64)) ** 0.5)
        self.global_grid = nn.Parameter(torch.randn(values, 16) * (2 / ((values + 1) * 16)) ** 0.5)
        self.global_coord = nn.Sequential(nn.Linear(c, c), nn.Tanh(), nn.Linear(c, 2), nn.Tanh())
        self.local_coord = nn.Sequential(nn.Conv2d(c, c, 1), nn.Tanh(), nn.Conv2d(c, 2, 1), nn.Tanh())
        if kind == "grad":
            blocks = [BasicBlock(2 * c) for _ in range(7)]
        else:
            blocks = [Bottleneck(2 * c, 4 * c if kind == "crad" else c, tuned) for _ in range(11)]
        self.blocks, self.recover = nn.Sequential(*blocks), nn.Conv2d(2 * c, c, 1, bias=False)

    def lookup(self, x):
        """The rows of both grids, [N, 2C, H, W]."""
        n, c, h, w = x.shape
        where, local = self.global_coord(x.mean((2, 3))).float(), self.local_coord(x).permute(0, 2, 3, 1).float()
        if self.tuned:
            # Weights are computed in f32; grids that are stored in bf16 are multiplied in it.
            kind = self.global_grid.dtype
            g = (bilinear_weights(where, 4).to(kind) @ self.global_grid.t()).view(n, c, h, w)
            l = (bilinear_weights(local, 8).to(kind) @ self.local_grid.t()).permute(0, 3, 1, 2)
            return torch.cat([g, l], 1).contiguous(memory_format=torch.channels_last)
        maps, cells = self.global_grid.view(1, -1, 4, 4), self.local_grid.view(1, c, 8, 8)
        g = F.grid_sample(maps, where.view(1, n, 1, 2), align_corners=False)
        l = F.grid_sample(cells.repeat(n, 1, 1, 1), local, align_corners=False)
        return torch.cat([g.permute(2, 3, 0, 1).reshape(n, c, h, w), l], 1)

    def forward(self, x):
        f = self.recover(self.blocks(self.lookup(x)))
        step = 1 - torch.round((((f - x) ** 2).mean(1) * 0.05).clamp(0, 1))
        s = (0.3 * step + 0.7 * F.cosine_similarity(f, x, dim=1)).unsqueeze(1)
        return s * x + (1 - s) * f


def options():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("model", choices=["crad", "crad-s", "grad"])
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    arguments.add_argument("--mode", choices=["published", "tuned", "compiled"], default="tuned")
    arguments.add_argument("--features", type=int, nargs=2, default=[28, 216], help="height and width, channels")
    return arguments.parse_args()


def main():
    o = options()
    tuned, cuda, (side, channels) = o.mode != "published", o.device == "cuda", o.features
    layout = torch.channels_last if tuned else torch.contiguous_format
    torch.manual_seed(0)
    if tuned:
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = o.precision != "f32"
    model = Head(o.model, side, channels, tuned).to(o.device, memory_format=layout)
    shape = (o.batch, channels, side, side)
    batches = [torch.randn(shape, device=o.device).contiguous(memory_format=layout) for _ in range(4)]
    grids = [model.local_grid, model.global_grid]
    rest = [p for name, p in model.named_parameters() if not name.endswith("_grid")]
    groups = [{"params": rest, "lr": 1e-3}, {"params": grids, "lr": 0.1}]
    optimiser = torch.optim.AdamW(groups, fused=True if tuned and cuda else None)
    run = torch.compile(model, mode="max-autotune") if o.mode == "compiled" else model
    autocast = torch.autocast(o.device, dtype=torch.bfloat16, enabled=tuned and o.precision == "bf16")
    taken = 0

    def step():
        nonlocal taken
        x = batches[taken % len(batches)]
        taken += 1
        with autocast:
            y = run(x)
        loss = ((y.float() - x) ** 2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
        return loss.detach()

    for line in sys.stdin:
        steps = int(line)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []
        started = time.perf_counter()
        for mark in marks[:1]:
            mark.record()
        for _ in range(steps):
            loss = step()
        for mark in marks[1:]:
            mark.record()
        # Reading the loss waits for the device, once: only the last step is waited for.
        loss = loss.item()
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        print(seconds / steps, loss, (marks[0].elapsed_time(marks[1]) / 1e3 if cuda else seconds) / steps, flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


if __name__ == "__main__":
    main()
