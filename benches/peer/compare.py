#!/usr/bin/env python3
"""Times a training step of this engine beside the same step in PyTorch, in pairs, and prints the ratios.

    cargo build --release --example step
    python benches/peer/compare.py [--models crad-s,crad,grad] [--images 16] [--pairs 5] [--modes tuned,compiled]

Needs torch. Both sides stay alive and take one step in turn, on all cores, fp32, random inputs. A ratio above 1 means
that PyTorch takes longer. The peer is the better of its modes by median. PyTorch gets the malloc settings that it is
fastest with. Prints one line a model and, with --json FILE, writes everything.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
WARM_UP = 2


class Side:
    """A process that takes one step for each line it reads."""

    def __init__(self, command, environment=None):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, **pipes)
        self.seconds = []

    def step(self, counted=True):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline().split()
        if not line:
            sys.exit(f"{self.process.args} ended early")
        if counted:
            self.seconds.append(float(line[0]))
        # Idle threads of either side spin for a while after a step.
        time.sleep(0.3)

    def end(self):
        """Peak resident memory, MiB."""
        self.process.stdin.close()
        peak = float(self.process.stdout.read().split()[-1])
        self.process.wait()
        return peak


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--models", default="crad-s,crad,grad")
    arguments.add_argument("--modes", default="tuned,compiled")
    arguments.add_argument("--images", default="16")
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--json")
    options = arguments.parse_args()
    ours_command = [str(HERE.parents[1] / "target/release/examples/step")]
    results = []
    print(f"{processor()}, {os.cpu_count()} cores, fp32, {options.images} images, {options.pairs} pairs")
    print(f"{'model':8} {'ours':>9} {'peer':>9}  {'ratio (pairs)':24} {'ours':>9} {'peer':>9}")
    for model in options.models.split(","):
        ours = Side([*ours_command, model, options.images])
        peers = {
            mode: Side([sys.executable, str(HERE / "torch_step.py"), model, options.images, mode], MALLOC)
            for mode in options.modes.split(",")
        }
        for side in [ours, *peers.values()]:
            for _ in range(WARM_UP):
                side.step(counted=False)
        for _ in range(options.pairs):
            for side in [*peers.values(), ours]:
                side.step()
        mode, peer = min(peers.items(), key=lambda p: statistics.median(p[1].seconds))
        ratios = sorted(p / o for p, o in zip(peer.seconds, ours.seconds))
        peaks = {name: side.end() for name, side in {"ours": ours, **peers}.items()}
        middle = statistics.median
        spread = f"{middle(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) {mode}"
        print(
            f"{model:8} {middle(ours.seconds):7.3f} s {middle(peer.seconds):7.3f} s  {spread:24}"
            f" {peaks['ours']:5.0f} MiB {peaks[mode]:5.0f} MiB",
            flush=True,
        )
        seconds = {"ours": ours.seconds, **{m: s.seconds for m, s in peers.items()}}
        results.append({"model": model, "seconds": seconds, "peak_mib": peaks, "peer": mode, "ratio": middle(ratios)})
    if options.json:
        facts = {"processor": processor(), "cores": os.cpu_count(), "images": int(options.images), "results": results}
        pathlib.Path(options.json).write_text(json.dumps(facts, indent=1) + "\n")


main()
