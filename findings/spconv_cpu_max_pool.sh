#!/usr/bin/env bash
# Library: spconv 2.3.8, on the CPU. Seen: 2026-11-30.
# Surprise: SparseMaxPool3d starts from 0, not from the first value: the maximum of -2 and -1 is 0.
# Why it matters: behind a ReLU nothing shows. Features that may be negative (pre-activation blocks, raw height or
# intensity) lose every maximum below zero, and a cell that has none looks like one that is empty.
# Tandem: uses none of spconv's pooling; its spconv back-end is the convolution alone (models/lidar/backend_spconv.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 spconv==2.3.8
"$work/venv/bin/python" - <<'PYTHON'
import importlib.metadata
import sys

import spconv.pytorch as spconv
import torch

# Two cells that fall into one of the pooled grid, and one alone.
indices = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 2, 2, 2]], dtype=torch.int32)
features = torch.tensor([[-2.0, 5.0], [-1.0, 3.0], [-4.0, -6.0]])
pooled = spconv.SparseMaxPool3d(kernel_size=2, stride=2)(spconv.SparseConvTensor(features, indices, [4, 4, 4], 1))
seen = {tuple(cell[1:]): row for cell, row in zip(pooled.indices.tolist(), pooled.features.tolist())}

print("spconv", importlib.metadata.version("spconv"))
print("expected: (0, 0, 0): [-1.0, 5.0], (1, 1, 1): [-4.0, -6.0]")
print("seen:", ", ".join(f"{cell}: {row}" for cell, row in sorted(seen.items())))
stated = seen == {(0, 0, 0): [0.0, 5.0], (1, 1, 1): [0.0, 0.0]}
sys.exit(0 if stated else "spconv no longer does what this script states")
PYTHON
