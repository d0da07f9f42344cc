#!/usr/bin/env python3
"""The peer of pictures.rs: the usual Python pipeline. For each line read, all pictures once; written are the seconds.

    torch_pictures.py load DIR                       OpenCV reads, Pillow resizes, torch normalises: a DataLoader
    torch_pictures.py features DIR b4|lite0 FILE --mode eager|compiled     the backbone on pictures prepared before
    torch_pictures.py verdicts DIR --mode eager|compiled                   loaded as above, as bytes, and scored by torch_inference.py

The backbone has its BatchNorm folded into the convolutions and is channels last, fp32. Needs torch, OpenCV, Pillow.
"""
import argparse
import os
import pathlib
import sys
import time

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "fixtures"))
from reference import backbone as reference  # noqa: E402

SIZE, BATCH = 224, 16
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Pictures(torch.utils.data.Dataset):
    def __init__(self, folder, as_bytes):
        self.paths = sorted(path for path in pathlib.Path(folder).iterdir() if path.is_file())
        self.as_bytes = as_bytes

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        rgb = cv2.cvtColor(cv2.imread(str(self.paths[i]), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        small = Image.fromarray(rgb).resize((SIZE, SIZE), Image.BILINEAR)
        if self.as_bytes:
            return torch.from_numpy(np.array(small))
        x = torch.from_numpy(np.array(small)).permute(2, 0, 1).float().div_(255)
        return x.sub_(MEAN[:, None, None]).div_(STD[:, None, None])


def loader(folder, as_bytes=False):
    # One worker a core, kept from pass to pass; each does one thing at a time.
    workers = os.cpu_count()
    return torch.utils.data.DataLoader(
        Pictures(folder, as_bytes), BATCH, num_workers=workers, persistent_workers=True, worker_init_fn=lambda _: cv2.setNumThreads(0)
    )


class Folded(torch.nn.Module):
    """The network of fixtures/reference/backbone.py for speed: folded, channels last, activations fused where torch can."""

    def __init__(self, net, weights):
        super().__init__()
        self.net, self.weights = net, {}
        self.padding = reference.pads(net, SIZE, SIZE)

        def fold(conv, norm):
            scale = weights[f"{norm}.weight"] / torch.sqrt(weights[f"{norm}.running_var"] + reference.BN_EPS)
            kernel = weights[f"{conv}.weight"] * scale[:, None, None, None]
            bias = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
            self.weights[conv] = (kernel.float().to(memory_format=torch.channels_last), bias.float())

        fold("_conv_stem", "_bn0")
        for i, b in enumerate(net.blocks):
            name = f"_blocks.{i}"
            if b.expand != 1:
                fold(f"{name}._expand_conv", f"{name}._bn0")
            fold(f"{name}._depthwise_conv", f"{name}._bn1")
            fold(f"{name}._project_conv", f"{name}._bn2")
            for part in ["_se_reduce", "_se_expand"] if b.squeezed else []:
                key = f"{name}.{part}"
                self.weights[key] = (weights[f"{key}.weight"].float(), weights[f"{key}.bias"].float())

    def conv(self, key, h, stride=1, pad=(0, 0, 0, 0), groups=1):
        top, bottom, left, right = pad
        symmetric = top == bottom and left == right
        if not symmetric:
            h = F.pad(h, (left, right, top, bottom))
        kernel, bias = self.weights[key]
        return F.conv2d(h, kernel, bias, stride=stride, padding=(top, left) if symmetric else 0, groups=groups)

    def forward(self, x):
        act = F.silu if self.net.act == "swish" else F.relu6
        h, taps = act(self.conv("_conv_stem", x, 2, self.padding[0])), []
        for i, b in enumerate(self.net.blocks):
            name, before = f"_blocks.{i}", h
            if b.expand != 1:
                h = act(self.conv(f"{name}._expand_conv", h))
            h = act(self.conv(f"{name}._depthwise_conv", h, b.stride, self.padding[i + 1], b.hidden))
            if b.squeezed:
                squeezed = F.silu(self.conv(f"{name}._se_reduce", h.mean((2, 3), keepdim=True)))
                h = h * torch.sigmoid(self.conv(f"{name}._se_expand", squeezed))
            h = self.conv(f"{name}._project_conv", h)
            if b.stride == 1 and b.inputs == b.outputs:
                h = h + before
            if i in self.net.taps:
                taps.append(h)
        a, b = taps
        return torch.cat([a, F.interpolate(b, a.shape[2:], mode="bilinear", align_corners=True)], 1)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("what", choices=["load", "features", "verdicts"])
    arguments.add_argument("folder")
    arguments.add_argument("network", nargs="?", choices=["b4", "lite0"])
    arguments.add_argument("weights", nargs="?")
    arguments.add_argument("--mode", choices=["eager", "compiled"], default="eager")
    options = arguments.parse_args()
    batches = loader(options.folder, options.what == "verdicts")
    if options.what == "verdicts":
        from torch_inference import Scorer

        model = Scorer("lite0", "crad-s", SIZE).eval().to(memory_format=torch.channels_last)
        if options.mode == "compiled":
            model = torch.compile(model)
    if options.what == "features":
        net = {"b4": reference.B4, "lite0": reference.LITE0}[options.network]
        model = Folded(net, reference.stored_weights(net, options.weights)).eval()
        if options.mode == "compiled":
            model = torch.compile(model)
        inputs = [batch.to(memory_format=torch.channels_last) for batch in batches]
    with torch.inference_mode():
        for _ in sys.stdin:
            started = time.perf_counter()
            if options.what == "load":
                total = sum(float(batch.flatten()[::997].sum()) for batch in batches)
            elif options.what == "verdicts":
                total = sum(float(model(batch).sum()) for batch in batches)
            else:
                total = sum(float(model(batch).flatten()[::997].sum()) for batch in inputs)
            print(time.perf_counter() - started, total, flush=True)


if __name__ == "__main__":
    main()
