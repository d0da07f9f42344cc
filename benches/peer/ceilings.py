#!/usr/bin/env python3
"""What a GPU reaches at best, as one JSON object: a large copy, and a large matrix product in each precision, by PyTorch.

Random values, never zeros; times by events; the median of a few repetitions. f32 is PyTorch's own f32 product, for
comparison: ours makes three TF32 products of each.
"""
import json
import statistics

import torch

SIZE, BYTES, REPEATS = 8192, 2 << 30, 10


def seconds(work):
    """Median time of a call."""
    taken = []
    for _ in range(REPEATS + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken[2:])


def main():
    source = torch.randn(BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    found = {"torch": torch.__version__, "copy_bytes_per_second": 2 * BYTES / seconds(lambda: target.copy_(source))}
    del source, target
    flops = {}
    for name, kind in {"f32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}.items():
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        a, b = (torch.randn(SIZE, SIZE, device="cuda").to(kind) for _ in range(2))
        out = torch.empty_like(a)
        flops[name] = 2 * SIZE**3 / seconds(lambda: torch.matmul(a, b, out=out))
    print(json.dumps({**found, "product_flops_per_second": flops}))


if __name__ == "__main__":
    main()
