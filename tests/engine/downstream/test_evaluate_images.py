from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch

from data.sample import IGNORE_LABEL
from engine.downstream.common import LabelDraws, SegmentationTask
from engine.downstream.confusion import LabelError
from engine.downstream.dense import ImageParts, Keep, build_dense, score_dense, train_dense
from engine.downstream.depth import DepthConfig, DepthTask
from engine.downstream.features import FeatureBank
from engine.downstream.image_segmentation import (
    ImageFinetuneConfig,
    ImageProbeConfig,
    choose_pixels,
    extract_pixel_bank,
    probe_pyramid,
)
from engine.downstream.linear_probe import LinearHead
from engine.downstream.protocols import ProtocolsConfig, of_tower
from engine.downstream.results import Result, paired_difference
from engine.downstream.runner import Initialisation, Job, measure
from models.image.decoder import UNetDecoder
from models.pairing import FeatureMap, upsample_to_pixels
from tests.engine.downstream.toy import toy_splits
from tests.helpers.toy_dense import SIZE, ToyEncoder, ToyImages, toy_images


def make_decoder(levels: Sequence[int], num_outputs: int, width: int) -> UNetDecoder:
    return UNetDecoder(levels, num_outputs, width=width)


def read_map(m: FeatureMap, size: tuple[int, int]) -> torch.Tensor:
    return upsample_to_pixels(FeatureMap(m.values, m.stride, m.origin_px), size)


CLASSES = SegmentationTask(dataset="toy", class_names=("dark", "middle", "bright"), ignore_label=IGNORE_LABEL)
PROTOCOLS: tuple[str, ...] = ("depth", "depth_frozen", "image_linear_probe", "image_finetune")
SMALL = ProtocolsConfig(
    protocols=PROTOCOLS,
    depth=DepthConfig(steps=12, lrs=(0.002, 0.01), width=8),
    image_linear_probe=ImageProbeConfig(steps=60, lrs=(0.03, 0.1), pixels_per_image=100),
    image_finetune=ImageFinetuneConfig(steps=4, lrs=(0.003,), seeds=(0, 1), width=8),
    tune_sweeps=2,
)
DRAWN = LabelDraws(
    text="5 frames", runs=(np.arange(5), np.arange(4, 9)), tuning=(np.array([1, 2, 4]),), settings={"kind": "toy"}
)
DEPTH_DRAWN = dataclasses.replace(DRAWN, runs=DRAWN.runs[:1])
DRAWS: dict[str, LabelDraws] = {
    "depth": DEPTH_DRAWN,
    "depth_frozen": DEPTH_DRAWN,
    "image_finetune": DRAWN,
}
PRETRAINED = Initialisation(name="toy", pretrained=True, networks=(lambda: ToyEncoder(0),), checkpoint=("abc",))
RANDOM = Initialisation(
    name="random", pretrained=False, networks=(lambda: ToyEncoder(1, good=False), lambda: ToyEncoder(2, good=False))
)


def run(
    inits: list[Initialisation],
    images: ToyImages,
    config: ProtocolsConfig = SMALL,
    *,
    classes: SegmentationTask | None = CLASSES,
    draws: Mapping[str, LabelDraws] = DRAWS,
    known: Sequence[Result] = (),
    progress: Callable[[float, str], None] | None = None,
    keep: Keep | None = None,
) -> list[Result]:
    job = Job(
        protocols=of_tower(config.protocols, "image_backbone"),
        parts=ImageParts(read=images, decoders={"unet": make_decoder}, resample=read_map, keep=keep),
        splits=toy_splits(),
        dataset="toy",
        classes=classes,
        config=config,
        draws=draws,
    )
    return list(measure(inits, job, known=known, progress=progress))


@pytest.fixture(scope="module")
def measured() -> tuple[list[Result], ToyImages, list[float], list[tuple[str, str]]]:
    images, shares, kept = ToyImages(), [], []
    results = run(
        [PRETRAINED, RANDOM],
        images,
        progress=lambda share, text: shares.append(share),
        keep=lambda init, protocol, network: kept.append((init, protocol)),
    )
    return results, images, shares, kept


def test_all_protocols_compare_under_the_same_budget(
    measured: tuple[list[Result], ToyImages, list[float], list[tuple[str, str]]],
) -> None:
    results, images, shares, kept = measured
    assert [(r.init, r.protocol) for r in results] == [(i, p) for i in ("toy", "random") for p in PROTOCOLS]
    for ours, random in zip(results[:4], results[4:], strict=True):
        assert ours.fingerprint == random.fingerprint
        assert ours.metric == ("rmse_log" if ours.protocol.startswith("depth") else "miou")
        gain = paired_difference(ours, random)
        assert gain is not None
        assert gain.num_pairs == len(ours.seeds)
        if ours.protocol in ("depth_frozen", "image_linear_probe"):  # what training cannot make up for
            assert ours.measure.sign * gain.mean > (0.05 if ours.metric == "rmse_log" else 10.0), ours.protocol
    assert len({(r.protocol, r.fingerprint) for r in results}) == 4
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1.0)
    assert kept == [(i, p) for i in ("toy", "random") for p in PROTOCOLS if p != "image_linear_probe"]
    # Tuned rates are told in the metric's own direction and unit.
    assert all(0 < value < 5 for value in results[0].tuning.values() if value is not None)
    assert results[0].lr[0] == min((v, float(k)) for k, v in results[0].tuning.items() if v is not None)[1]
    assert max(v for v in results[2].tuning.values() if v is not None) > 20
    # Paired draws: both initialisations trained on the same samples with the same seeds.
    trained = [(indices, truth, seed) for indices, truth, augment, seed, _ in images.calls if augment]
    assert trained[: len(trained) // 2] == trained[len(trained) // 2 :]


def test_nothing_is_ever_fitted_or_tuned_on_the_test_split(
    measured: tuple[list[Result], ToyImages, list[float], list[tuple[str, str]]],
) -> None:
    _, images, _, _ = measured
    test = set(toy_splits().test.tolist())
    asked = [(set(indices), augment) for indices, _, augment, *_ in images.calls]
    with_test = [(indices, augment) for indices, augment in asked if indices & test]
    # Whole test split, unaugmented: a pass a seed, of one seed of three protocols and two of fine-tuning.
    assert with_test == [(test, False)] * (2 * (3 * 1 + 2))


def test_what_came_later_is_named_only_where_it_is_used(
    measured: tuple[list[Result], ToyImages, list[float], list[tuple[str, str]]],
) -> None:
    """Records of before lack these settings and stay known."""
    results, *_ = measured
    assert not {"decoder", "schedule", "root_scale"} & set(results[0].settings)
    other = dataclasses.replace(SMALL.depth, root_scale=10.0, schedule="onecycle", steps=2, lrs=(0.002,))
    (again,) = run([PRETRAINED], ToyImages(), dataclasses.replace(SMALL, protocols=("depth",), depth=other))
    assert (again.settings["root_scale"], again.settings["schedule"]) == (10.0, "onecycle")


def test_known_results_are_not_measured_again(
    measured: tuple[list[Result], ToyImages, list[float], list[tuple[str, str]]],
) -> None:
    results, *_ = measured
    images = ToyImages()
    assert run([PRETRAINED, RANDOM], images, known=results) == results
    assert not images.calls
    other = dataclasses.replace(SMALL, protocols=("depth",), depth=dataclasses.replace(SMALL.depth, steps=2))
    again = run([PRETRAINED], images, other, known=results)
    assert [r.protocol for r in again] == ["depth"]
    assert again[0].fingerprint != results[0].fingerprint


def test_frozen_networks_stay_as_they_are_and_others_learn() -> None:
    encoder, task = ToyEncoder(0).eval(), DepthTask(SMALL.depth)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    for frozen in (True, False):
        network = build_dense(encoder, task, SMALL.depth, make_decoder, seed=0, frozen=frozen)
        start = score_dense(network, [toy_images([20], truth="depth")], task).metrics()
        train_dense(network, ToyImages(), np.arange(5), task, SMALL.depth, lr=0.01, seed=0)
        assert not network.training
        same = all(torch.equal(v, before[k]) for k, v in network.encoder.state_dict().items())
        assert same == frozen
        assert score_dense(network, [toy_images([20], truth="depth")], task).metrics()["abs_rel"] < start["abs_rel"]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def test_training_repeats_bit_for_bit_and_leaves_the_callers_random_state_alone() -> None:
    task, found = DepthTask(SMALL.depth), []
    state = torch.get_rng_state()
    for _ in "ab":
        network = build_dense(ToyEncoder(0), task, SMALL.depth, make_decoder, seed=3, frozen=False)
        train_dense(network, ToyImages(), np.arange(3), task, SMALL.depth, lr=0.002, seed=3)
        found.append(network.state_dict())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_probe_on_maps_is_the_probe_on_features_read_at_every_pixel() -> None:
    encoder, batch = ToyEncoder(0).eval(), toy_images([1], truth="labels")
    assert batch.images is not None
    with torch.no_grad():
        maps = encoder.pyramid(batch.images)
        features = torch.cat([read_map(m, SIZE) for m in maps], dim=1)
        rows = features.movedim(1, -1).flatten(0, 2)
        head = LinearHead(rows, 3, torch.Generator().manual_seed(0))
        expected = head(rows).view(*features.shape[:1], *SIZE, 3).movedim(-1, 1)
        torch.testing.assert_close(probe_pyramid(head, maps, SIZE, read_map), expected, rtol=1e-4, atol=1e-4)


def test_the_bank_holds_features_of_labelled_pixels_and_their_classes() -> None:
    encoder, batch = ToyEncoder(0).eval(), toy_images([1, 2], truth="labels")
    bank = extract_pixel_bank(encoder, [batch], CLASSES, read_map, pixels_per_image=10_000, seed=0)
    assert isinstance(bank, FeatureBank)
    assert batch.image_labels is not None
    assert batch.images is not None
    labelled = batch.image_labels != IGNORE_LABEL
    assert len(bank.labels) == int(labelled.sum())
    assert torch.equal(bank.class_counts(3), torch.bincount(batch.image_labels[labelled].long(), minlength=3))
    with torch.no_grad():
        rows = torch.cat([read_map(m, SIZE) for m in encoder.pyramid(batch.images)], dim=1).movedim(1, -1)[labelled]
    got = {tuple(r.tolist()) for r in bank.features}
    assert got == {tuple(r.half().tolist()) for r in rows}
    few = extract_pixel_bank(encoder, [batch], CLASSES, read_map, pixels_per_image=7, seed=0)
    assert len(few.labels) == 7 * 4


def test_chosen_pixels_are_labelled_different_and_at_most_so_many() -> None:
    labels = torch.full((3, 4, 5), IGNORE_LABEL)
    labels[0, 1, :3] = 2
    labels[1] = 0
    images, pixels = choose_pixels(labels, IGNORE_LABEL, 6, torch.Generator().manual_seed(0))
    assert torch.bincount(images, minlength=3).tolist() == [3, 6, 0]
    assert set(pixels[images == 0].tolist()) == {5, 6, 7}
    assert len(set(pixels[images == 1].tolist())) == 6


def test_missing_truth_classes_and_draws_are_refused() -> None:
    for only in PROTOCOLS:
        config = dataclasses.replace(SMALL, protocols=(only,))
        with pytest.raises(LabelError, match=r"have no (depth|classes of pixels)"):
            run([PRETRAINED], ToyImages(with_truth=False), config)
    with pytest.raises(ValueError, match="needs draws"):
        run([PRETRAINED], ToyImages(), draws={})
    with pytest.raises(ValueError, match="image_linear_probe needs class names"):
        run([PRETRAINED], ToyImages(), classes=None)
    with pytest.raises(ValueError, match="class_balance: got"):
        ImageFinetuneConfig(loss=dataclasses.replace(SMALL.image_finetune.loss, class_balance=0.5))
