"""Times scikit-learn on one class of 115 maps of 224x224 beside `cargo bench --bench metrics`, in the same run.

Run: python benches/peer/metrics.py [COMMAND]   (needs numpy, scipy, scikit-learn; COMMAND runs the benchmark,
default `cargo bench --bench metrics -- "1 classes"`). Only AUROC, AP and best F1 of pixels: scikit-learn has no AUPRO.
"""

import re
import subprocess
import sys
import time

import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

rng = np.random.default_rng(1)
field = gaussian_filter(rng.normal(size=(115, 224, 224)).astype(np.float32), (0, 6, 6))
labels = (field > np.quantile(field, 0.97)).ravel()
scores = gaussian_filter(rng.normal(size=field.shape).astype(np.float32), (0, 8, 8)).ravel() * 16 + labels * 0.4
scores = (np.round((scores + 0.1 * rng.random(scores.size)) * 4e6) / 4e6).astype(np.float32)


def peer():
    start = time.perf_counter()
    roc_auc_score(labels, scores)
    average_precision_score(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300))
    return time.perf_counter() - start


before = peer()
command = sys.argv[1:] or ["cargo", "bench", "--bench", "metrics", "--", "1 classes"]
text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
low, median, high = re.search(r"1 classes\s+time:\s+\[(\S+ \S+) (\S+ \S+) (\S+ \S+)\]", text).groups()
value, unit = median.split()
ours = float(value) * {"s": 1.0, "ms": 1e-3}[unit]
theirs = [before, peer(), peer()]
print(f"scikit-learn: {', '.join(f'{t:.2f}' for t in theirs)} s; ours: {median} ({low} to {high})")
print(f"ratio of medians {np.median(theirs) / ours:.1f}")
