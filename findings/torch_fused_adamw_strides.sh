#!/usr/bin/env bash
# Library: torch 2.13.0, CPU. Seen: 2026-11-30.
# Surprise: AdamW with fused=True goes through parameter and gradient as they lie in memory. Where their strides differ
# (a gradient in channels_last of a contiguous weight), it gives each element the gradient of another one, without a word.
# The same form on CUDA refuses such tensors; the unfused form gives the right values.
# Why it matters: the fused form needs a third of the time. Autograd keeps the strides of a leaf's gradient, but whoever sets
# `.grad` (accumulation by hand, reduction over processes, an optimizer around the optimizer) trains wrongly and is not told.
# Tandem: gradients are laid out like their parameters before each fused update (engine/tower_optim.py: lay_gradients_like;
# tests/engine/test_schedule_optim.py).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'PYTHON'
import sys

import torch


def trained(fused, layout):
    """A weight after one update by a gradient that says +1 for the first input channel and -1 for the others."""
    weight = torch.nn.Parameter(torch.zeros(2, 3, 2, 2))
    grad = -torch.ones(2, 3, 2, 2)
    grad[:, 0] = 1.0
    weight.grad = grad.contiguous(memory_format=layout)
    torch.optim.AdamW([weight], lr=1.0, weight_decay=0.0, fused=fused).step()
    return weight.detach()


right = trained(False, torch.contiguous_format)
same = {
    (fused, layout): torch.allclose(trained(fused, layout), right, atol=1e-5)
    for fused in (False, True)
    for layout in (torch.contiguous_format, torch.channels_last)
}
print("torch", torch.__version__)
print("expected: the same weight, however the gradient lies in memory")
for (fused, layout), equal in same.items():
    print(f"seen: fused={fused}, gradient in {layout}: {'the same' if equal else 'another weight'}")
wrong = [key for key, equal in same.items() if not equal]
sys.exit(0 if wrong == [(True, torch.channels_last)] else "torch no longer does what this script states")
PYTHON
