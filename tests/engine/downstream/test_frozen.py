from __future__ import annotations

import pytest
import torch

from engine.downstream.common import Samples, voxel_labels
from engine.downstream.features import FeatureBank, extract_bank, score
from engine.downstream.knn import KnnClassifier, KnnConfig
from engine.downstream.linear_probe import LinearProbeConfig, fit_linear, tune_linear
from engine.errors import DivergenceError
from tests.engine.downstream.toy import TASK, ToyNet, ToySweeps, toy_batch


def bank_of(network: torch.nn.Module, indices: list[int], **options: int | None) -> FeatureBank:
    settings = {"voxels_per_sweep": None, "seed": 0, **options}
    return extract_bank(network, ToySweeps()(Samples(indices, truth="labels")), TASK, **settings)


def test_bank_rows_are_the_networks_features_of_the_labelled_voxels() -> None:
    network = ToyNet(0).eval()
    bank = bank_of(network, [5]).joined(bank_of(network, [6]))
    batch = toy_batch([6])
    labels = voxel_labels(batch, TASK)
    with torch.no_grad():
        expected = network(batch.voxel_coords, batch.voxel_features, 1)[labels != 255].half()
    torch.testing.assert_close(bank.features[-len(expected) :], expected)
    assert bank.labels[-len(expected) :].tolist() == labels[labels != 255].tolist()


def test_bank_subsample_is_paired_between_networks_and_batch_sizes() -> None:
    one = bank_of(ToyNet(0), [3, 4, 5], voxels_per_sweep=10)
    other = bank_of(ToyNet(1), [3, 4, 5], voxels_per_sweep=10)
    together = extract_bank(
        ToyNet(0), ToySweeps()(Samples([3, 4, 5], truth="labels", batch_size=3)), TASK, voxels_per_sweep=10, seed=0
    )
    assert one.labels.tolist() == other.labels.tolist() == together.labels.tolist()
    torch.testing.assert_close(one.features, together.features, atol=2e-3, rtol=1e-2)
    assert len(one.labels) == 30


def test_bank_refuses_features_that_half_precision_cannot_hold() -> None:
    network = ToyNet(0)
    with torch.no_grad():
        network.last.weight.fill_(1e6)
    with pytest.raises(ValueError, match="not finite in half precision"):
        bank_of(network, [0])


def test_score_gives_every_point_its_voxels_prediction() -> None:
    network, batch = ToyNet(0), toy_batch([7])
    predicted = torch.arange(batch.voxel_coords.shape[0]) % 3
    matrix = score(network, [batch], {"p": lambda features: predicted}, TASK)["p"]
    assert batch.labels is not None
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for voxel, label in zip(batch.point_voxel.tolist(), batch.labels.tolist(), strict=True):
        if label != 255:
            expected[label, int(predicted[voxel])] += 1
    assert matrix.counts.tolist() == expected.tolist()


def test_probe_reads_classes_from_good_features_only() -> None:
    config = LinearProbeConfig(steps=100, batch_size=256)
    miou = {}
    for name, network in {"good": ToyNet(0), "blind": ToyNet(0, good=False)}.items():
        bank = bank_of(network, list(range(10)))
        head = fit_linear(bank, TASK, config, lr=0.03, seed=0, device="cpu")
        miou[name] = score(network, [toy_batch([20])], {"p": head.predict}, TASK)["p"].miou()
    assert miou["good"] > 0.95
    assert miou["blind"] < 0.3


def test_probe_does_not_depend_on_scale_and_offset_of_the_features() -> None:
    bank = bank_of(ToyNet(0), [0, 1, 2])
    moved = FeatureBank((bank.features.float() * 4 + 2).half(), bank.labels)
    config = LinearProbeConfig(steps=30)
    a, b = (fit_linear(x, TASK, config, lr=0.01, seed=3, device="cpu") for x in (bank, moved))
    with torch.no_grad():
        torch.testing.assert_close(a(bank.features.float()), b(moved.features.float()), atol=0.02, rtol=0.02)


def test_probe_rate_is_tuned_on_the_validation_rows() -> None:
    fit, held = bank_of(ToyNet(0), list(range(6))), bank_of(ToyNet(0), [6, 7])
    config = LinearProbeConfig(lrs=(1e-6, 0.03), steps=60)
    tuned = tune_linear(fit, held, TASK, config, seed=0, device="cpu")
    assert tuned.lr == 0.03
    assert tuned.table[0.03] > 0.9
    # The judge is the held bank alone: with its classes exchanged, a good fit looks bad.
    exchanged = FeatureBank(held.features, (held.labels + 1) % 3)
    assert tune_linear(fit, exchanged, TASK, config, seed=0, device="cpu").table[0.03] < 0.1


def test_probe_that_diverges_says_so() -> None:
    bank = bank_of(ToyNet(0), [0])
    with pytest.raises(DivergenceError, match="learning rate 1e\\+37"):
        fit_linear(bank, TASK, LinearProbeConfig(steps=5), lr=1e37, seed=0, device="cpu")


def test_knn_agrees_with_a_loop_over_neighbours() -> None:
    network = ToyNet(0)
    bank = bank_of(network, [0, 1])
    config = KnnConfig(k=5, bank_size=50, temperature=0.1)
    classifier = KnnClassifier(bank, TASK, config, seed=0)
    queries = torch.randn(30, 8)
    found = classifier.predict(queries).tolist()
    for query, answer in zip(queries - classifier.center, found, strict=True):
        similarity = torch.cosine_similarity(query[None], classifier.features)
        votes = [0.0, 0.0, 0.0]
        for row in similarity.argsort(descending=True)[:5].tolist():
            votes[int(classifier.labels[row])] += float((similarity[row] / 0.1).exp())
        assert answer == votes.index(max(votes))
    assert len(classifier.labels) == 50


def test_knn_with_a_query_limit_abstains_on_the_rest() -> None:
    bank = bank_of(ToyNet(0), [0, 1])
    limited = KnnClassifier(bank, TASK, KnnConfig(bank_size=60, queries_per_sweep=10), seed=0)
    full = KnnClassifier(bank, TASK, KnnConfig(bank_size=60), seed=0)
    queries = torch.randn(40, 8)
    some, every = limited.predict(queries), full.predict(queries)
    assert int((some >= 0).sum()) == 10
    assert (some[some >= 0] == every[some >= 0]).all()


def test_knn_config_refuses_more_neighbours_than_entries() -> None:
    with pytest.raises(ValueError, match=r"k: got 20, expected at most 10 .bank_size"):
        KnnConfig(bank_size=10)
