#!/usr/bin/env python3
"""Times a training step of this engine beside the same step in PyTorch, in pairs, and prints the ratios.

    cargo build --release --example step --example ceilings
    python benches/peer/compare.py [--models crad-s,crad,grad] [--batch 16] [--pairs 5] [--modes tuned,compiled]
    python benches/peer/compare.py --device cuda --precision bf16 --modes published,tuned,compiled

Needs torch, except for --modes "". All sides stay alive and work in turn, on random inputs: on a CPU one step on all
cores, on a GPU 50 steps by the clock of the device, then 200 by the wall clock, each in a row with one wait at the end;
ours are replays of a graph, as in training. A ratio above 1 means that PyTorch takes longer. The peer is the better of its
modes by median. On a CPU PyTorch gets the malloc settings that it is fastest with. Prints one line a model and, with --json
FILE, writes everything.
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
STEP = HERE.parents[1] / "target/release/examples/step"
CEILINGS = STEP.with_name("ceilings")
MALLOC = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
# Both sides as a machine with AVX2 alone would run them.
AVX2 = {"GRAD_SIMD": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
# Steps to warm up with, steps of a sample by the device's clock (0: none) and by the wall clock, and seconds to rest after
# one: idle threads of either side spin for a while.
PACE = {"cpu": (2, 0, 1, 0.3), "cuda": (10, 50, 200, 0.02), "emulated": (1, 1, 2, 0)}
# Takes so long that a twentieth of the steps will do.
SLOW = {"published": 20}


class Side:
    """A process that takes as many steps as each line it reads says."""

    def __init__(self, command, environment=None, slow=1):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, **pipes)
        self.slow, self.seconds, self.device_seconds = slow, [], []

    def steps(self, count):
        """Seconds of a step by the wall clock, and by the device's where it is said; None when the process has ended."""
        try:
            self.process.stdin.write(f"{max(1, count // self.slow)}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self.process.stdout.readline().split()
        return (float(line[0]), float(line[2]) if len(line) > 2 else None) if line else None

    def end(self):
        """What it says when the input ends: its last line, in words."""
        self.process.stdin.close()
        said = self.process.stdout.read().split()
        self.process.wait()
        return said


def race(name, sides, pairs, pace):
    """Warms all sides up and samples them in turn. A peer that ends early is left out; their names."""
    warm_up, by_device, by_wall, rest = pace
    failed = [side for side in sides if sides[side].steps(warm_up) is None]
    if "ours" in failed:
        sys.exit(f"{sides['ours'].process.args[0]} ended early")
    for side in failed:
        print(f"{name} PyTorch, {side}: ended early", file=sys.stderr)
        del sides[side]
    for _ in range(pairs):
        for side in reversed(sides.values()):
            for count, samples, clock in [(by_device, side.device_seconds, 1), (by_wall, side.seconds, 0)]:
                if count:
                    samples.append((side.steps(count) or sys.exit(f"{side.process.args} ended early"))[clock])
            time.sleep(rest)
    return failed


def verdict(sides):
    """The samples of all sides, and the ratios of the pairs with the better peer."""
    found = {"seconds": {name: side.seconds for name, side in sides.items()}}
    if all(side.device_seconds for side in sides.values()):
        found["device_seconds"] = {name: side.device_seconds for name, side in sides.items()}
    if peers := {name: side for name, side in sides.items() if name != "ours"}:
        mode, peer = min(peers.items(), key=lambda s: statistics.median(s[1].seconds))
        ratios = sorted(p / o for p, o in zip(peer.seconds, sides["ours"].seconds))
        found |= {"peer": mode, "ratio": statistics.median(ratios), "ratios": ratios}
    return found


def machine():
    """What a result on a CPU is of: processor, cores, the vector instructions that matter here."""
    flags = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "BF16", "amx_bf16": "AMX"}
    about = dict(line.split(":", 1) for line in open("/proc/cpuinfo") if ":" in line)
    about = {key.strip(): value.strip() for key, value in about.items()}
    found = about.get("flags", "").split()
    features = ", ".join(name for flag, name in flags.items() if flag in found)
    return {"processor": about.get("model name", platform.processor()), "cores": os.cpu_count(), "features": features}


def headline(*more):
    """The first line that is printed."""
    return ", ".join(["{processor}, {cores} cores, {features}".format(**machine()), *more])


def products(model, batch, side, c):
    """Floating-point operations of the products of a step: forward, and twice as many backward."""
    grids = 2 * c * c
    blocks = {"grad": 14 * 9 * 4 * c * c, "crad": 22 * 2 * c * 4 * c, "crad-s": 22 * 2 * c * c}
    return 3 * 2 * batch * side * side * (blocks[model] + grids + 2 * c * c)


def ceilings():
    """Floating-point operations a second of this CPU's registers, by precision; none where the program was not built."""
    found = subprocess.run([CEILINGS], capture_output=True, text=True) if CEILINGS.exists() else None
    return json.loads(found.stdout)["flops_per_second"] if found and found.returncode == 0 else {}


def compare(options, model):
    """Times all sides on one model; a peer that fails is left out and named."""
    pace, features = list(PACE[options.device]), ["--features", *map(str, options.features)]
    pace[1:3] = options.steps or pace[1:3]
    common = [model, "--batch", str(options.batch), "--device", options.device, "--precision", options.precision]
    only = AVX2 if options.isa == "avx2" else {}
    sides = {"ours": Side([options.step, *common, *features], only)}
    environment = (MALLOC if options.device == "cpu" else {}) | only
    for mode in filter(None, options.modes.split(",")):
        command = [sys.executable, HERE / "torch_step.py", *common, *features, "--mode", mode]
        sides[mode] = Side(command, environment, SLOW.get(mode, 1))
    failed = race(f"{model:8}", sides, options.pairs, pace)
    last = {name: side.end() for name, side in sides.items()}
    result = {"model": model, "batch": options.batch, "precision": options.precision, "failed": failed}
    result["products_flop"] = products(model, options.batch, *options.features)
    result |= {"launches": int(last["ours"][0]), "peak_mib": {name: float(said[-1]) for name, said in last.items()}}
    return result | verdict(sides)


def line(result):
    """One line of the table."""
    middle = {name: statistics.median(seconds) for name, seconds in result["seconds"].items()}
    text = f"{result['model']:8} {result['batch']:5} {middle['ours'] * 1e3:10.3f} ms"
    if "peer" not in result:
        return f"{text} {'no peer':>13}"
    peer, ratios, peaks = result["peer"], result["ratios"], result["peak_mib"]
    spread = f"{result['ratio']:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) {peer}"
    return f"{text} {middle[peer] * 1e3:10.3f} ms  {spread:28} {peaks['ours']:5.0f} MiB {peaks[peer]:5.0f} MiB"


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--models", default="crad-s,crad,grad")
    arguments.add_argument("--modes", default="tuned,compiled")
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--device", choices=PACE, default="cpu")
    arguments.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="f32")
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--steps", type=int, nargs=2, help="steps of a sample by the device's clock, by the wall clock")
    arguments.add_argument("--features", type=int, nargs=2, default=[28, 216], help="height and width, channels")
    arguments.add_argument("--isa", choices=["best", "avx2"], default="best", help="restrict both sides")
    arguments.add_argument("--step", type=pathlib.Path, default=STEP, help="our side's executable")
    arguments.add_argument("--json", type=pathlib.Path)
    options = arguments.parse_args()
    print(headline(options.device, options.precision, options.isa, f"{options.pairs} pairs"))
    print(f"{'model':8} {'batch':>5} {'ours':>13} {'PyTorch':>13}  {'ratio (range)':28} {'ours':>9} {'PyTorch':>9}")
    results, ceiling = [], ceilings() if options.device == "cpu" and options.isa == "best" else {}
    for model in options.models.split(","):
        results.append(compare(options, model))
        print(line(results[-1]), flush=True)
        if options.json:
            facts = machine() | {"device": options.device, "isa": options.isa, "flops_per_second": ceiling, "results": results}
            options.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
