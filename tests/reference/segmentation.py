"""Slow, obvious forms of the segmentation metric and of Lovász-softmax."""

from __future__ import annotations

import torch
from torch import Tensor


def iou_by_sets(predicted: list[int], labels: list[int], num_classes: int, ignore: int) -> dict[int, float]:
    """IoU of each class that is true or predicted anywhere, from sets of point numbers."""
    ious = {}
    for c in range(num_classes):
        true = {i for i, y in enumerate(labels) if y == c}
        guess = {i for i, p in enumerate(predicted) if p == c and labels[i] != ignore}
        if true | guess:
            ious[c] = len(true & guess) / len(true | guess)
    return ious


def lovasz_by_loop(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Lovász-softmax, straight from the definition: one class and one error at a time."""
    losses = []
    for c in sorted(set(labels.tolist())):
        foreground = [int(y == c) for y in labels.tolist()]
        errors = [abs(foreground[i] - float(probabilities[i, c].detach())) for i in range(len(labels))]
        order = sorted(range(len(labels)), key=lambda i: -errors[i])
        loss, before = torch.zeros((), dtype=probabilities.dtype), 0.0
        mistaken: set[int] = set()
        for i in order:
            mistaken.add(i)
            truth = {j for j, f in enumerate(foreground) if f}
            # Jaccard loss of the prediction that is wrong exactly on `mistaken`.
            jaccard = len(mistaken) / len(truth | mistaken)
            error = 1 - probabilities[i, c] if foreground[i] else probabilities[i, c]
            loss = loss + error * (jaccard - before)
            before = jaccard
        losses.append(loss)
    return torch.stack(losses).mean()
