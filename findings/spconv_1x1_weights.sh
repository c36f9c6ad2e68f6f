#!/usr/bin/env bash
# Library: spconv 2.3.8. Seen: 2026-11-30, on the CPU; the line that does it (pytorch/conv.py, `conv1x1`) serves CUDA too.
# Surprise: the weight of a convolution with kernel size 1 has the shape [out, 1, 1, 1, in] like all others, and its memory
# is read as [in, out]: channel o of the output is not the sum over weight[o, 0, 0, 0, i] * input[i].
# Why it matters: a network trained with spconv does not notice. Weights from elsewhere (a dense convolution, another
# library, a converter that goes by the shape) load without a word, and every 1x1 shortcut of a ResNet computes nonsense.
# Tandem: calls spconv's gather-multiply-scatter function, not its layers, so 1x1 kernels are as their shape says
# (models/lidar/backend_spconv.py; against the dense convolution in tests/models/lidar/test_sparse.py).
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

IN, OUT = 2, 3


def apply(kernel_size):
    """Output of a convolution whose kernel's centre is a known matrix [out, in], and that of the matrix itself."""
    matrix = torch.arange(1.0, 1 + IN * OUT).reshape(OUT, IN)
    convolution = spconv.SubMConv3d(IN, OUT, kernel_size, bias=False)
    middle = kernel_size // 2
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[:, middle, middle, middle, :] = matrix
        features = torch.tensor([[1.0, 10.0]])
        cell = spconv.SparseConvTensor(features, torch.zeros(1, 4, dtype=torch.int32), [4, 4, 4], 1)
        return convolution(cell).features[0].tolist(), (matrix @ features[0]).tolist()


print("spconv", importlib.metadata.version("spconv"))
print("expected: the same product for a 3x3x3 kernel that has only a centre and for the 1x1x1 kernel of that centre")
wide, expected = apply(3)
narrow, _ = apply(1)
print(f"expected: {expected}")
print(f"seen: kernel size 3: {wide}; kernel size 1: {narrow}")
stated = wide == expected and narrow == [41.0, 52.0, 63.0]
sys.exit(0 if stated else "spconv no longer does what this script states")
PYTHON
