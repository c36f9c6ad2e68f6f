"""Several sets as one stream: how often each sample comes, in which order, from which set, and how it continues."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import yaml

from configs.dump import dump
from configs.load import ConfigError, load
from data.batch_spec import BatchSpec
from data.loading.loader import DataConfig, ShardLoader, build_loader
from data.order import SampleOrder, Stretch
from data.storage.manifest import load_manifest
from data.storage.manifest_writer import write_manifest
from data.storage.mixture import MixedReader, SetConfig, open_sets
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.storage.superpixel_record import SuperpixelRecord
from data.storage.teacher_cache import TeacherCache
from tests.data.loading.test_loader import assert_same, break_samples, loader, take
from tests.helpers.samples import write_toy_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Eight and three training samples; their keys are partly the same."""
    folder = tmp_path_factory.mktemp("sets")
    return (
        write_toy_set(folder / "a", num_logs=3, frames_per_log=4, num_points=200),
        write_toy_set(folder / "b", num_logs=2, frames_per_log=3, num_points=150),
    )


def order(*stretches: Stretch, seed: int = 0, group: int = 2) -> SampleOrder:
    total = sum(s.num for s in stretches)
    return SampleOrder(np.arange(100, 100 + total), np.arange(total) // 2, seed, group, stretches)


def epoch_of(stream: SampleOrder, epoch: int) -> list[tuple[int, int]]:
    return [stream.at(epoch * len(stream) + offset) for offset in range(len(stream))]


def test_weights_of_one_change_nothing() -> None:
    plain = order(Stretch(num=9))
    for stretches in ((), (Stretch(num=4), Stretch(num=5)), (Stretch(num=9, weight=1.0),)):
        other = SampleOrder(plain.indices, plain.shards, 0, 2, stretches)
        assert [other.at(p) for p in range(40)] == [plain.at(p) for p in range(40)]


@pytest.mark.parametrize(("num", "weight"), [(7, 0.5), (7, 2.0), (5, 1.4), (3, 0.1), (4, 3.25)])
def test_samples_come_as_often_as_their_weight_says(num: int, weight: float) -> None:
    stream = order(Stretch(num=6), Stretch(num=num, weight=weight))
    share = max(1, round(weight * num))
    assert len(stream) == 6 + share
    visits = [epoch_of(stream, epoch) for epoch in range(12)]
    for epoch, seen in enumerate(visits):
        assert sorted(i for _, i in seen if i < 106) == list(range(100, 106))
        assert sum(i >= 106 for _, i in seen) == share
        assert {p for p, i in seen if i < 106} == {epoch}
    weighted = [(p, i) for seen in visits for p, i in seen if i >= 106]
    assert len(set(weighted)) == len(weighted)  # a visit is never repeated, so neither is its augmentation
    counts = Counter(i for _, i in weighted)
    assert max(counts.values()) - min(counts.get(106 + k, 0) for k in range(num)) <= 1


def test_an_epoch_mixes_the_sets_and_differs_from_the_next() -> None:
    stream = order(Stretch(num=40), Stretch(num=40, weight=0.5), group=100)
    first, second = ([i for _, i in epoch_of(stream, e)] for e in (0, 1))
    halves = [sum(i >= 140 for i in part) for part in (first[:30], first[30:])]
    assert min(halves) >= 4
    one, other = ({i for i in seen if i >= 140} for seen in (first, second))
    assert one.isdisjoint(other)
    assert len(one | other) == 40


def test_stretches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="stretches hold 5 samples, indices 4"):
        SampleOrder(np.arange(4), np.zeros(4, int), 0, 1, (Stretch(num=5),))
    for weight in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="weight"):
            Stretch(num=3, weight=weight)


def test_rows_of_the_joined_manifest_read_the_right_sample(sets: tuple[str, str]) -> None:
    opened = open_sets([SetConfig(shards=root, split=None) for root in sets])
    reader = opened.reader
    assert isinstance(reader, MixedReader)
    manifest = reader.manifest
    assert len(manifest) == 12 + 6
    alone = [SampleReader(open_sets([SetConfig(shards=r)]).reader.manifest) for r in sets]
    for index in range(len(manifest)):
        part, row = (0, index) if index < 12 else (1, index - 12)
        sample, expected = reader.read(index, images=False), alone[part].read(row, images=False)
        assert sample.key == expected.key == manifest.key(index)
        np.testing.assert_array_equal(sample.points_lidar, expected.points_lidar)
        assert manifest.logs[manifest.sample_log[index]] == f"{part}.toy/{sample.log}"
        assert manifest.shards[manifest.sample_shard[index]].file.startswith(f"{part}.toy/shard-")
    for index in (-1, 18):
        with pytest.raises(IndexError):
            reader.read(index)


def mixed(sets: tuple[str, str], num_workers: int = 0) -> ShardLoader:
    more = (SetConfig(shards=sets[1], weight=2.0),)
    return loader(sets[0], more=more, micro_batch_size=2, num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_both_sets_and_go_on_from_anywhere(sets: tuple[str, str], num_workers: int) -> None:
    source = mixed(sets)
    assert source.samples_per_epoch == 8 + 2 * 3
    batches = take(source, 0, 7)
    assert sum(len(batch.keys) for batch in batches) == 14
    again = mixed(sets, num_workers)
    assert_same(take(again, 3, 4), batches[3:])


def test_a_state_belongs_to_its_weights(sets: tuple[str, str]) -> None:
    build = {weight: loader(sets[0], more=(SetConfig(shards=sets[1], weight=weight),)) for weight in (1.0, 1.01, 2.0)}
    state = build[1.0].state(3)
    build[1.0].check_state(state)
    with pytest.raises(ValueError, match=r"samples is .*sets, splits, limits, fraction and weights"):
        build[1.01].check_state(state)
    with pytest.raises(ValueError, match="samples_per_epoch is 11 in the checkpoint and 14 here"):
        build[2.0].check_state(state)


def test_damage_in_the_second_set_is_counted_and_named(tmp_path: Path) -> None:
    one = write_toy_set(tmp_path / "a", num_logs=4, frames_per_log=4)
    other = write_toy_set(tmp_path / "b", num_logs=3, frames_per_log=4)
    broken = load_manifest(other).key(1)
    break_samples(other, [broken])
    source = loader(one, more=(SetConfig(shards=other),), max_skip_share=1.0, micro_batch_size=4)
    assert source.manifest.key(16 + 1) == broken
    keys = [key for batch in take(source, 0, 5) for key in batch.keys]
    assert len(keys) == 20
    assert sum(source.counters.values()) == 1


def test_what_does_not_go_together_is_refused(sets: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"split 'night' is not in"):
        loader(sets[0], more=(SetConfig(shards=sets[1], split="night"),))
    with pytest.raises(ShardError, match="holds no finished shard set"):
        loader(sets[0], more=(SetConfig(shards=str(tmp_path)),))
    config = DataConfig(shards=sets[0], more=(SetConfig(shards=sets[1]),))
    with pytest.raises(ValueError, match=r"data\.more"):
        build_loader(
            config,
            spec=BatchSpec(superpixels=True),
            seed=0,
            rank=0,
            world_size=1,
            teacher_cache=Mock(spec=TeacherCache),
        )


def recorded(path: Path, **settings: Any) -> str:
    """A toy set whose manifest says how its superpixels were made."""
    root = write_toy_set(path, num_logs=2, frames_per_log=2)
    write_manifest(dataclasses.replace(load_manifest(root), superpixels=SuperpixelRecord(method="slic", **settings)))
    return root


def test_superpixels_other_than_expected_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    thirty, more = (
        recorded(tmp_path / "a", num_segments=30, compactness=6.0),
        recorded(tmp_path / "b", num_segments=150),
    )
    assert open_sets([SetConfig(shards=more), SetConfig(shards=thirty)]).num_segments == 150
    expected = SuperpixelRecord(num_segments=30)
    assert open_sets([SetConfig(shards=thirty, expected_superpixels=expected)]).num_segments == 30
    text = r"num_segments 150 \(expected 30\).* superpixels\.num_segments=30` .*data\.expected_superpixels=null"
    with pytest.raises(ShardError, match=text):
        loader(more, expected_superpixels=expected)
    with pytest.raises(ShardError, match=r"compactness None \(expected 6"):
        open_sets([SetConfig(shards=more, expected_superpixels=SuperpixelRecord(compactness=6.0))])
    with pytest.raises(ShardError, match="/b has superpixels of num_segments 150"):
        loader(thirty, more=(SetConfig(shards=more, expected_superpixels=expected),))
    assert caplog.messages == []


def test_a_set_without_a_record_is_used_with_one_warning(
    sets: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    config = DataConfig(shards=sets[0], expected_superpixels=SuperpixelRecord(num_segments=30))
    for rank in (0, 1):
        source = build_loader(config, spec=BatchSpec(superpixels=True), seed=0, rank=rank, world_size=2)
        assert source.samples_per_epoch == 8
    (message,) = caplog.messages
    assert "does not record how its superpixels were made" in message
    assert "num_segments=30" in message
    assert open_sets([config]).num_segments is None


def test_sets_are_named_on_the_command_line() -> None:
    config = load(DataConfig, None, ["shards=a", "more=[{shards: b, weight: 2}, {shards: c, split: null}]"])
    assert [(s.shards, s.split, s.weight) for s in config.sets] == [
        ("a", "train", 1),
        ("b", "train", 2),
        ("c", None, 1),
    ]
    assert load(DataConfig, None, ["shards=a"]).more == ()
    for value, message in (
        ("[{shards: b, weigth: 2}]", r"more\[0\]: weigth: unknown name; did you mean 'weight'"),
        ("[{split: train}]", r"more\[0\]: shards: no value given"),
        ("[b]", r"more: got \['b'\], expected a list of a section with shards, split, limit, weight"),
        ("[{shards: b, weight: 0}]", r"more\[0\]: weight: got 0.*expected above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(DataConfig, None, ["shards=a", f"more={value}"])
    read = yaml.safe_load(dump(config))
    assert load(DataConfig, None, defaults=read) == config
