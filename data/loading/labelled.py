"""Which labelled samples a detector learns from, and how often each comes."""

from __future__ import annotations

import numpy as np

from data.loading.fractions import FractionConfig, select
from data.storage.mixture import Opened
from data.storage.object_database import ObjectDatabase

MAX_WEIGHT = 1000.0
"""Visits of a sample in an epoch, at most."""


def with_fraction(opened: Opened, config: FractionConfig) -> Opened:
    """The samples that keep their labels.

    Raises:
        ValueError: a fraction of several sets, or one that keeps nothing.
        ShardError: a list that cannot be read or belongs to another set.
    """
    if config.kind == "all":
        return opened
    if len(opened.stretches) > 1:
        raise ValueError(f"data.fraction.kind={config.kind} is a choice within one set; set data.more=[]")
    try:
        indices = select(opened.reader.manifest, opened.indices, config)
    except ValueError as error:
        raise ValueError(f"data.fraction: {error}") from error
    return opened.of_rows([indices], [opened.stretches[0].weight])


def class_balanced(opened: Opened, database: ObjectDatabase) -> Opened:
    """The samples that have a box, each as often in an epoch as makes the classes equally frequent.

    Let n_c be the number of samples with a box of class c, and T their sum over the C classes that occur. A sample
    comes, on average, sum over its classes c of T / (C n_c) times, so that each class is the reason for T / C visits,
    and an epoch has T. Samples without any box do not come; more often than `MAX_WEIGHT` none does.

    Source: Zhu, Jiang, Zhou, Li, Yu, "Class-balanced grouping and sampling for point cloud 3D object detection" (CBGS),
    arXiv 2019, section 3.1; Team et al., OpenPCDet, released code. Deviation: both draw with repetition; here all
    samples of the same classes come equally often (`data.order.Stretch`).

    Raises:
        ValueError: no sample has a box.
    """
    has_class = database.num_boxes > 0
    num_with = has_class.sum(axis=0)
    if not num_with.any():
        raise ValueError("data.class_balanced=true, but none of the samples has a box of the detector's classes")
    occurs = num_with > 0
    per_class = np.zeros(len(num_with))
    per_class[occurs] = num_with.sum() / (occurs.sum() * num_with[occurs])
    rows, weights = [], []
    # Samples of the same classes are one stretch: its passes tell the visits of a sample apart.
    for kind in np.unique(has_class[has_class.any(axis=1)], axis=0):
        of_kind = np.isin(opened.indices, database.samples[(has_class == kind).all(axis=1)])
        rows.append(opened.indices[of_kind])
        weight = opened.stretches[0].weight * float(per_class[kind].sum())
        weights.append(min(weight, MAX_WEIGHT))
    return opened.of_rows(rows, weights)
