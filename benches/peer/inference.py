#!/usr/bin/env python3
"""Times inference of this engine beside PyTorch, from bytes to scores, in pairs, and prints the ratios.

    cargo build --release --example inference
    python benches/peer/inference.py [--models crad] [--backbones lite0,b4] [--batches 1,8,32] [--pairs 5]
    python benches/peer/inference.py --device cuda --precision bf16 --modes tuned,compiled --json FILE

Needs torch, except for --modes "". Both sides stay alive and work in turn, batch after batch without a wait between them.
A ratio above 1 means that PyTorch takes longer; the peer is the better of its modes by median.
"""
import argparse
import json
import os
import pathlib
import statistics
import sys
import time

from compare import MALLOC, Side, processor

HERE = pathlib.Path(__file__).resolve().parent
OURS = HERE.parents[1] / "target/release/examples/inference"
# Batches to warm up with, batches of a sample, and seconds to rest after one.
PACE = {"cpu": (1, 1, 0.3), "cuda": (10, 50, 0.02), "emulated": (1, 1, 0)}


def compare(options, model, backbone, batch):
    warm_up, batches, rest = PACE[options.device]
    common = ["--backbone", backbone, "--batch", str(batch), "--size", str(options.size)]
    common += ["--device", options.device, "--precision", options.precision]
    sides = {"ours": Side([options.ours, "--serve", "--model", model, *common])}
    environment = MALLOC if options.device == "cpu" else None
    for mode in filter(None, options.modes.split(",")):
        sides[mode] = Side([sys.executable, HERE / "torch_inference.py", model, *common, "--mode", mode], environment)
    failed = [name for name, side in sides.items() if side.steps(warm_up) is None]
    if "ours" in failed:
        sys.exit(f"{options.ours} ended early")
    for name in failed:
        print(f"{model:8} PyTorch, {name}: ended early", file=sys.stderr)
        del sides[name]
    for _ in range(options.pairs):
        for side in reversed(sides.values()):
            side.seconds.append(side.steps(batches) or sys.exit(f"{side.process.args} ended early"))
            time.sleep(rest)
    for side in sides.values():
        side.process.stdin.close()
        side.process.wait()
    result = {"model": model, "backbone": backbone, "batch": batch, "precision": options.precision, "failed": failed}
    result |= {"seconds": {name: side.seconds for name, side in sides.items()}}
    ours = sides.pop("ours")
    result["pictures_per_second"] = batch / statistics.median(ours.seconds)
    if sides:
        mode, peer = min(sides.items(), key=lambda s: statistics.median(s[1].seconds))
        ratios = sorted(p / o for p, o in zip(peer.seconds, ours.seconds))
        result |= {"peer": mode, "ratio": statistics.median(ratios), "ratios": ratios}
    return result


def line(r):
    text = f"{r['model']:8} {r['backbone']:6} {r['batch']:5} {r['pictures_per_second']:10.1f} /s"
    if "peer" not in r:
        return f"{text} {'no peer':>13}"
    peer = r["batch"] / statistics.median(r["seconds"][r["peer"]])
    return f"{text} {peer:10.1f} /s  {r['ratio']:.2f} ({r['ratios'][0]:.2f}-{r['ratios'][-1]:.2f}) {r['peer']}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--models", default="crad")
    arguments.add_argument("--backbones", default="lite0,b4")
    arguments.add_argument("--batches", default="1,8,32")
    arguments.add_argument("--modes", default="tuned,compiled")
    arguments.add_argument("--size", type=int, default=224)
    arguments.add_argument("--device", choices=PACE, default="cpu")
    arguments.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--ours", type=pathlib.Path, default=OURS, help="our side's executable")
    arguments.add_argument("--json", type=pathlib.Path)
    options = arguments.parse_args()
    print(f"{processor()}, {os.cpu_count()} cores, {options.device}, {options.precision}, {options.pairs} pairs")
    print(f"{'model':8} {'bone':6} {'batch':>5} {'ours':>13} {'PyTorch':>13}  ratio (range)")
    results = []
    for model in options.models.split(","):
        for backbone in options.backbones.split(","):
            for batch in map(int, options.batches.split(",")):
                results.append(compare(options, model, backbone, batch))
                print(line(results[-1]), flush=True)
                if options.json:
                    options.json.write_text(json.dumps({"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
