#!/usr/bin/env python3
"""PyTorch's side of benches/hopper.rs: the same convolutions by cuDNN in bf16, channels last, with a cold cache.

One JSON object a line: direction, case (as benches/hopper.rs names it), seconds (the median), and the kernels that ran, from
which the tile that cuDNN chose can be read.
"""
import json
import statistics

import torch

BATCHES, CHANNELS = (16, 64), ((432, 432), (432, 864), (864, 432), (432, 216))
SAMPLES, ROTATED, CLEARED = 15, 180_000_000, 1 << 30
DIRECTIONS = {"forward": None, "input gradient": (True, False, False), "weight gradient": (False, True, False)}


def calls(direction, batch, a, b, size, sets):
    """A call for each of several sets of random arrays."""
    random = lambda *s: torch.randn(*s, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    pad = [size // 2] * 2
    for _ in range(sets):
        x, w, dy = random(batch, a, 28, 28), random(b, a, size, size), random(batch, b, 28, 28)
        if mask := DIRECTIONS[direction]:
            rest = ([1, 1], pad, [1, 1], False, [0, 0], 1, mask)
            yield lambda x=x, w=w, dy=dy: torch.ops.aten.convolution_backward(dy, x, w, None, *rest)
        else:
            yield lambda x=x, w=w: torch.nn.functional.conv2d(x, w, padding=pad)


def main():
    torch.backends.cudnn.benchmark = True
    cleared = torch.empty(CLEARED // 4, device="cuda")
    for batch in BATCHES:
        for a, b in CHANNELS:
            size = 3 if a == b else 1
            w = [size, size, a, b] if size > 1 else [a, b]
            sets = min(32, max(2, ROTATED // (2 * batch * 784 * (a + b))))
            for direction in DIRECTIONS:
                work, taken = list(calls(direction, batch, a, b, size, sets)), []
                for _ in range(SAMPLES + 2):
                    cleared.zero_()
                    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                    start.record()
                    for call in work:
                        call()
                    end.record()
                    torch.cuda.synchronize()
                    taken.append(start.elapsed_time(end) / 1e3 / sets)
                with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                    work[0]()
                    torch.cuda.synchronize()
                found = {"direction": direction, "case": f"{[batch, 28, 28, a]} {w}", "seconds": statistics.median(taken[2:])}
                print(json.dumps({**found, "kernels": [e.key for e in profile.key_averages()]}), flush=True)


if __name__ == "__main__":
    main()
