#!/usr/bin/env python3
"""PyTorch's side of compare.py: one training step for each line read, its seconds for each line written.

Arguments: model, images, mode (tuned | compiled). The last line, after the input ends, is the peak resident memory in
MiB. Tuned: channels last, fused hard-swish, both grids as bilinear weights times cells, AdamW without a host round trip.
Compiled: tuned, through torch.compile. The same mathematics as ours, checked by the fixtures of this repository.
"""
import resource
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

CHANNELS, SIDE = 216, 28


class BasicBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(c, c, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)

    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + x)


class Bottleneck(nn.Module):
    def __init__(self, c, e):
        super().__init__()
        self.expand, self.project = nn.Conv2d(c, e, 1, bias=False), nn.Conv2d(e, c, 1, bias=False)
        self.depthwise = nn.Conv2d(e, e, 3, padding=1, groups=e, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(e), nn.BatchNorm2d(e), nn.BatchNorm2d(c)
        self.reduce, self.excite = nn.Linear(e, e // 4, bias=False), nn.Linear(e // 4, e, bias=False)

    def forward(self, x):
        t = self.bn2(self.depthwise(F.hardswish(self.bn1(self.expand(x)))))
        gate = F.hardsigmoid(self.excite(F.relu(self.reduce(t.mean((2, 3))))))
        return x + self.bn3(self.project(F.hardswish(t * gate[:, :, None, None])))


def bilinear_weights(coord, side):
    """Weights of all cells of a grid at coordinates [..., 2]; corners not aligned, zero outside."""
    cells = torch.arange(side, dtype=coord.dtype)
    x, y = (((coord[..., i] + 1) * side - 1) / 2 for i in (0, 1))
    wx, wy = ((1 - (p[..., None] - cells).abs()).clamp(min=0) for p in (x, y))
    return (wy[..., :, None] * wx[..., None, :]).flatten(-2)


class Head(nn.Module):
    def __init__(self, kind):
        super().__init__()
        c, values = CHANNELS, CHANNELS * SIDE * SIDE
        self.local_grid = nn.Parameter(torch.randn(c, 64) * (2 / ((c + 1) * 64)) ** 0.5)
        self.global_grid = nn.Parameter(torch.randn(values, 16) * (2 / ((values + 1) * 16)) ** 0.5)
        self.global_coord = nn.Sequential(nn.Linear(c, c), nn.Tanh(), nn.Linear(c, 2), nn.Tanh())
        self.local_coord = nn.Sequential(nn.Conv2d(c, c, 1), nn.Tanh(), nn.Conv2d(c, 2, 1), nn.Tanh())
        if kind == "grad":
            blocks = [BasicBlock(2 * c) for _ in range(7)]
        else:
            blocks = [Bottleneck(2 * c, 4 * c if kind == "crad" else c) for _ in range(11)]
        self.blocks, self.recover = nn.Sequential(*blocks), nn.Conv2d(2 * c, c, 1, bias=False)

    def forward(self, x):
        n, c, h, w = x.shape
        g = (bilinear_weights(self.global_coord(x.mean((2, 3))), 4) @ self.global_grid.t()).view(n, c, h, w)
        local = bilinear_weights(self.local_coord(x).permute(0, 2, 3, 1), 8)
        q = torch.cat([g, (local @ self.local_grid.t()).permute(0, 3, 1, 2)], 1)
        f = self.recover(self.blocks(q.contiguous(memory_format=torch.channels_last)))
        step = 1 - torch.round((((f - x) ** 2).mean(1) * 0.05).clamp(0, 1))
        s = (0.3 * step + 0.7 * F.cosine_similarity(f, x, dim=1)).unsqueeze(1)
        return s * x + (1 - s) * f


def main():
    kind, images, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    torch.manual_seed(0)
    model = Head(kind).to(memory_format=torch.channels_last)
    shape = (images, CHANNELS, SIDE, SIDE)
    batches = [torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(4)]
    grids = [model.local_grid, model.global_grid]
    rest = [p for name, p in model.named_parameters() if not name.endswith("_grid")]
    optimiser = torch.optim.AdamW([{"params": rest, "lr": 1e-3}, {"params": grids, "lr": 0.1}])
    run = torch.compile(model, mode="max-autotune") if mode == "compiled" else model
    for i, _ in enumerate(sys.stdin):
        started = time.perf_counter()
        x = batches[i % 4]
        loss = ((run(x) - x) ** 2).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimiser.step()
        print(time.perf_counter() - started, loss.item(), flush=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


main()
