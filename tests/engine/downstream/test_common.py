from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from engine.downstream.common import (
    SegmentationTask,
    Splits,
    calibrate_batch_norm,
    hold_out,
    thin,
    tune_rate,
    voxel_labels,
)
from engine.errors import DivergenceError
from tests.engine.downstream.toy import TASK, ToyNet, toy_batch, toy_splits


def test_hold_out_keeps_whole_logs_together_and_loses_nothing() -> None:
    splits = toy_splits(num_train=50, num_logs=10)
    fit, held = hold_out(splits.train, splits.train_logs, 0.2)
    assert sorted([*fit, *held]) == list(range(50))
    logs = dict(zip(splits.train.tolist(), splits.train_logs.tolist(), strict=True))
    assert not {logs[i] for i in fit.tolist()} & {logs[i] for i in held.tolist()}
    assert len(held) == 10


def test_hold_out_of_a_single_log_takes_its_end() -> None:
    one = toy_splits(num_train=10, num_logs=1)
    fit, held = hold_out(one.train, one.train_logs, 0.3)
    assert fit.tolist() == list(range(7))
    assert held.tolist() == [7, 8, 9]


def test_splits_refuse_overlap_and_emptiness() -> None:
    with pytest.raises(ValueError, match="both train and test"):
        Splits(train=np.arange(4), train_logs=np.zeros(4, dtype=int), test=np.array([3]))
    with pytest.raises(ValueError, match="split names"):
        Splits(train=np.arange(4), train_logs=np.zeros(4, dtype=int), test=np.array([], dtype=int))


def test_unlabelled_set_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="prepare a labelled one"):
        SegmentationTask(dataset="raw", class_names=(), ignore_label=255)
    with pytest.raises(ValueError, match="sweep3 have no point labels"):
        voxel_labels(toy_batch([3], labelled=False), TASK)


def test_voxel_label_is_the_majority_of_its_labelled_points() -> None:
    batch = toy_batch([0, 1])
    assert batch.labels is not None
    found = voxel_labels(batch, TASK)
    for voxel in range(batch.voxel_coords.shape[0]):
        votes = [y for y in batch.labels[batch.point_voxel == voxel].tolist() if y != 255]
        expected = max(sorted(set(votes)), key=votes.count) if votes else 255
        assert int(found[voxel]) == expected
    assert 255 in found.tolist()


def test_thin_spreads_evenly_and_keeps_the_ends() -> None:
    assert thin(np.arange(100), 5).tolist() == [0, 25, 50, 74, 99]
    assert thin(np.arange(3), None).tolist() == thin(np.arange(3), 7).tolist() == [0, 1, 2]


def test_calibration_averages_batch_statistics_and_puts_everything_back() -> None:
    network = ToyNet(0)
    network.norm.running_mean += 7.0
    network.eval()
    before = {k: v.clone() for k, v in network.state_dict().items() if "running" not in k and "num_batches" not in k}
    batches = [toy_batch([i]) for i in range(4)]
    assert calibrate_batch_norm(network, batches, "cpu") == 1
    inputs = [network.first(b.voxel_features).detach() for b in batches]
    torch.testing.assert_close(network.norm.running_mean, torch.stack([x.mean(0) for x in inputs]).mean(0))
    torch.testing.assert_close(network.norm.running_var, torch.stack([x.var(0) for x in inputs]).mean(0))
    assert network.norm.momentum == 0.1
    assert not network.training
    assert not network.norm.training
    for name, value in before.items():
        torch.testing.assert_close(network.state_dict()[name], value)
    assert calibrate_batch_norm(nn.Linear(2, 2), batches, "cpu") == 0


def test_rate_tuning_takes_the_best_and_counts_divergence_as_worst() -> None:
    def trial(lr: float) -> float:
        if lr > 1.0:
            raise DivergenceError("loss nan")
        return {0.1: 0.4, 0.3: 0.6, 1.0: 0.5}[lr]

    tuned = tune_rate((0.1, 0.3, 1.0, 3.0), trial)
    assert tuned.lr == 0.3
    assert not tuned.at_edge
    assert np.isnan(tuned.table[3.0])
    assert tune_rate((0.1, 0.3, 3.0), trial).at_edge is False
    assert tune_rate((0.3, 0.1, 0.01), lambda lr: lr).at_edge
    with pytest.raises(DivergenceError, match="every learning rate"):
        tune_rate((3.0, 4.0), trial)


def test_label_of_a_voxels_first_point() -> None:
    batch = toy_batch([3])
    assert batch.labels is not None
    firsts: dict[int, int] = {}
    for voxel, label in zip(batch.point_voxel.tolist(), batch.labels.tolist(), strict=True):
        firsts.setdefault(voxel, label)
    expected = [firsts[voxel] for voxel in range(len(firsts))]
    assert voxel_labels(batch, TASK, "first").tolist() == expected
    assert voxel_labels(batch, TASK).tolist() != expected, "the first point may be unlabelled, the majority is not"
