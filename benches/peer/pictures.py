#!/usr/bin/env python3
"""Times loading pictures, and their features, beside the usual Python pipeline, in pairs, and prints the ratios.

    cargo build --release --example pictures
    python benches/peer/pictures.py [--count 64] [--side 1024] [--pairs 5] [--what png,jpeg,b4,lite0,verdicts]

`png` and `jpeg`: read, decode, resize to 224, normalise. `b4` and `lite0`: the backbone on prepared pictures. `verdicts`:
from PNG files to scores, by `crad-s` on Lite0. All in fp32. Both sides have the same files and all cores, stay alive and
work in turn. The pictures are enlarged photographs of scikit-image with seeded noise; B4 and the head have random weights.
A ratio above 1 means that Python takes longer. Needs torch, OpenCV, Pillow, scikit-image.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from compare import MALLOC, headline, machine

HERE = pathlib.Path(__file__).resolve().parent
OURS = HERE.parents[1] / "target/release/examples/pictures"
sys.path.insert(0, str(HERE.parents[1] / "fixtures"))
from reference import backbone as reference  # noqa: E402

LITE0 = HERE.parents[1] / "assets/backbone/efficientnet-lite0.safetensors"


def write_pictures(folder, count, side, suffix):
    """Photographs, enlarged, with a little noise: as well compressed as a camera's pictures."""
    from skimage import data

    photographs = [data.brick(), data.grass(), data.gravel(), data.astronaut(), data.coffee()]
    random = np.random.default_rng(0)
    for i in range(count):
        photograph = Image.fromarray(photographs[i % len(photographs)]).convert("RGB").resize((side, side), Image.BICUBIC)
        noise = random.integers(-3, 4, (side, side, 3))
        noisy = np.clip(np.array(photograph).astype(int) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:04}.{suffix}", **({"quality": 92} if suffix == "jpg" else {}))


class Side:
    def __init__(self, command, environment=None):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(list(map(str, command)), env={**os.environ, **(environment or {})}, **pipes)
        self.seconds = []

    def once(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline().split()
        return float(line[0]) if line else sys.exit(f"{self.process.args} ended early")

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def compare(sides, pairs):
    for side in sides.values():
        side.once()
    for _ in range(pairs):
        for side in sides.values():
            side.seconds.append(side.once())
    for side in sides.values():
        side.end()
    ours = sides.pop("ours")
    mode, peer = min(sides.items(), key=lambda s: statistics.median(s[1].seconds))
    ratios = sorted(p / o for p, o in zip(peer.seconds, ours.seconds))
    return ours.seconds, mode, peer.seconds, ratios


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=64)
    arguments.add_argument("--side", type=int, default=1024)
    arguments.add_argument("--pairs", type=int, default=5)
    arguments.add_argument("--what", default="png,jpeg,b4,lite0,verdicts")
    arguments.add_argument("--json", type=pathlib.Path)
    options = arguments.parse_args()
    results = []
    print(headline(f"{options.count} pictures of {options.side} pixels", f"{options.pairs} pairs"))
    print(f"{'what':8} {'ours':>12} {'Python':>12}  ratio (range)")
    with tempfile.TemporaryDirectory() as home:
        for what in options.what.split(","):
            suffix = "jpg" if what == "jpeg" else "png"
            folder = pathlib.Path(home) / what
            folder.mkdir()
            write_pictures(folder, options.count, options.side, suffix)
            peer = [sys.executable, HERE / "torch_pictures.py"]
            if what in ["png", "jpeg"]:
                sides = {"ours": Side([OURS, "load", folder]), "DataLoader": Side([*peer, "load", folder])}
            elif what == "verdicts":
                sides = {"ours": Side([OURS, "verdicts", folder])}
                for mode in ["eager", "compiled"]:
                    sides[mode] = Side([*peer, "verdicts", folder, "--mode", mode], MALLOC)
            else:
                file = LITE0
                if what == "b4":
                    file = pathlib.Path(home) / "b4.safetensors"
                    weights = reference.formula_weights(reference.B4)
                    save_file({k: v.numpy().astype(np.float32) for k, v in weights.items()}, file)
                common = ["features", folder, what, file]
                sides = {"ours": Side([OURS, *common])}
                for mode in ["eager", "compiled"]:
                    sides[mode] = Side([*peer, *common, "--mode", mode], MALLOC)
            ours, mode, python, ratios = compare(sides, options.pairs)
            rates = [options.count / statistics.median(seconds) for seconds in [ours, python]]
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) {mode}"
            print(f"{what:8} {rates[0]:8.1f} /s {rates[1]:8.1f} /s  {spread}", flush=True)
            result = {"what": what, "count": options.count, "peer": mode, "seconds": {"ours": ours, mode: python}}
            results.append(result | {"ratio": statistics.median(ratios), "ratios": ratios})
            if options.json:
                options.json.write_text(json.dumps(machine() | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
