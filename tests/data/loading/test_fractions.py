from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.loading.fractions import FractionConfig, every_kth_log, read_list, select, write_list
from data.storage.manifest import Manifest, load_manifest
from data.storage.shard import ShardError
from tests.helpers.samples import write_toy_set


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    root = write_toy_set(tmp_path_factory.mktemp("set"), num_logs=6, frames_per_log=3, num_points=20)
    return load_manifest(root)


def logs_of(manifest: Manifest, indices: np.ndarray) -> list[str]:
    return [manifest.logs[log] for log in manifest.sample_log[indices]]


def test_every_kth_log_keeps_whole_logs_from_the_kth_on(manifest: Manifest) -> None:
    train = manifest.indices("train")
    kept = every_kth_log(manifest, train, 2)
    assert logs_of(manifest, kept) == ["log-001"] * 3 + ["log-003"] * 3


def test_published_counts_of_every_kth(manifest: Manifest) -> None:
    assert len(select(manifest, np.arange(19130), FractionConfig(kind="every_sample", every=100))) == 192
    assert [len(np.arange(700)[k - 1 :: k]) for k in (100, 20, 10, 4)] == [7, 35, 70, 175]


def test_every_kth_sample_starts_with_the_first(manifest: Manifest) -> None:
    train = manifest.indices("train")
    assert (
        select(manifest, train, FractionConfig(kind="every_sample", every=4)).tolist() == train[[0, 4, 8, 12]].tolist()
    )


def test_random_draws_repeat_by_seed_and_grow_by_inclusion(manifest: Manifest) -> None:
    train = manifest.indices("train")

    def draw(count: int, seed: int) -> list[int]:
        return select(manifest, train, FractionConfig(kind="random", count=count, seed=seed)).tolist()

    assert draw(5, 1) == draw(5, 1)
    assert len(set(draw(5, 1))) == 5
    assert set(draw(2, 1)) < set(draw(5, 1))
    assert len({tuple(draw(3, seed)) for seed in range(20)}) > 10
    assert set(draw(5, 1)) <= set(train.tolist())
    assert draw(15, 3) == train.tolist()


def test_all_keeps_all(manifest: Manifest) -> None:
    train = manifest.indices("train")
    assert select(manifest, train, FractionConfig()) is train


def test_too_little_to_choose_from_is_refused(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="5 logs"):
        every_kth_log(manifest, manifest.indices("train"), 6)
    with pytest.raises(ValueError, match="only 3 samples"):
        select(manifest, manifest.indices("val"), FractionConfig(kind="random", count=4))
    with pytest.raises(ValueError, match="every: got 0"):
        FractionConfig(every=0)


def test_lists_survive_the_disk(manifest: Manifest, tmp_path: Path) -> None:
    chosen = np.array([7, 2, 11])
    path = tmp_path / "lists" / "few.txt"
    write_list(path, manifest, chosen, "three samples\nby hand")
    assert path.read_text().splitlines()[0] == "# toy: 3 samples. three samples by hand"
    assert read_list(path, manifest).tolist() == [7, 2, 11]


def test_a_list_chooses_among_the_samples_asked_for(manifest: Manifest, tmp_path: Path) -> None:
    train = manifest.indices("train")
    path = tmp_path / "few.txt"
    write_list(path, manifest, np.array([train[5], train[2]]), "two samples")
    config = FractionConfig(kind="list", file=str(path))
    assert select(manifest, train, config).tolist() == train[[2, 5]].tolist()
    assert select(manifest, train[:3], config).tolist() == [train[2]]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().partition(b"\n")[2])  # as some editors write UTF-8
    assert select(manifest, train, config).tolist() == train[[2, 5]].tolist()
    with pytest.raises(ValueError, match="names none of the 2 samples"):
        select(manifest, train[:2], config)
    with pytest.raises(ValueError, match=r"file: got .*kind is list"):
        FractionConfig(kind="list")
    with pytest.raises(ShardError, match=r"cannot read the list .*absent.txt"):
        select(manifest, train, FractionConfig(kind="list", file=str(tmp_path / "absent.txt")))


SCANS = {"00": 4541, "01": 1101, "02": 4661, "03": 801, "04": 271, "05": 2761, "06": 1101, "07": 1101}
SCANS |= {"09": 1591, "10": 1201}
"""Scans of SemanticKITTI's train sequences: 19,130."""


@pytest.mark.parametrize(("percent", "total"), [("1", 188), ("0.1", 17), ("0.01", 1)])
def test_segcontrasts_lists_have_their_published_counts(percent: str, total: int) -> None:
    path = Path(__file__).parents[3] / "configs" / "fractions" / f"semantickitti_segcontrast_{percent}_percent.txt"
    keys = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(keys) == len(set(keys)) == total
    sequences = [key.split("_")[0] for key in keys]
    assert all(int(key.split("_")[1]) < SCANS[sequence] for key, sequence in zip(keys, sequences, strict=True))
    if percent != "0.01":  # a share of each sequence, one at least
        share = float(percent) / 100
        assert {name: sequences.count(name) for name in SCANS} == {n: max(1, int(k * share)) for n, k in SCANS.items()}


@pytest.mark.parametrize(
    ("text", "message"),
    [("# nothing\n", "no samples"), ("log-000_000001\nzebra\n", "'zebra'"), ("log-000_000001\n" * 2, "more than once")],
)
def test_lists_of_other_sets_are_refused(manifest: Manifest, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(ShardError, match=message):
        read_list(path, manifest)
