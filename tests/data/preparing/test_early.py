"""A preparation that cannot succeed ends early, says why in few lines, and leaves the folder free for another try."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from data.calibration.conventions import with_cameras
from data.convert.base import FrameConverter, Skipped, read_or_skip
from data.geometry import rigid
from data.preparing.early import Tally, grouped, skip_text
from data.preparing.prepare import PrepareConfig, PrepareSummary, Share, join_shares, prepare, prepare_share
from data.preparing.samples import prepare_samples
from data.preparing.shard_task import RECORDS
from data.sample import Sample
from data.storage.damage import DamagedError
from data.storage.shard import ShardError
from tests.helpers.toy_converter import ToyConverter

PLAIN = PrepareConfig(samples_per_shard=64, superpixels=None)


@dataclass(frozen=True, kw_only=True)
class BrokenFrom(ToyConverter):
    """All frames from some number on fail by one reason."""

    first: int = 0

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        for item in super().frames(log, start, stop):
            if int(item.key[-6:]) >= self.first:
                yield Skipped(reason="image-broken", key=item.key, detail="no image")
            else:
                yield item


def test_frames_that_all_fail_alike_end_the_preparation_early(tmp_path, caplog):
    progress = []
    converter = BrokenFrom(frames_by_log=(300,))
    with pytest.raises(ShardError) as caught:
        prepare(converter, str(tmp_path), PLAIN, on_progress=lambda *counts: progress.append(counts))
    assert progress[-1] == (20, 300, {"image-broken": 20}), "of 300 frames 20 are read"
    assert str(caught.value).startswith(
        "stopped after 20 frames: 20 cannot be used, 3 are allowed, and the last 20 failed alike. image-broken: 20 "
        "frames of log-000, e.g. log-000_000000 (no image). "
    )
    assert caplog.messages == []
    assert not list(tmp_path.glob("*.tmp"))
    # Nothing is there, so it may begin again, with other settings too.
    assert len(prepare(ToyConverter(), str(tmp_path), PLAIN).manifest) == 24


def test_what_may_still_succeed_goes_on(tmp_path, caplog):
    converter = BrokenFrom(frames_by_log=(60, 4), first=35)
    with caplog.at_level(logging.WARNING):
        manifest = prepare(converter, str(tmp_path), PrepareConfig(superpixels=None, max_skip_share=0.5)).manifest
    assert len(manifest) == 39
    assert caplog.messages == ["skipped, image-broken: 25 frames of log-000, e.g. log-000_000035 (no image)"]


def test_a_folder_without_shards_is_begun_again(tmp_path):
    """Every frame of so few was skipped, which is known: the record must not outlive the repair of the source."""
    with pytest.raises(ShardError, match=r"4 of 4 frames cannot be used.*Repair the source and run again with --retry"):
        prepare(BrokenFrom(frames_by_log=(4,)), str(tmp_path), PLAIN)
    assert list((tmp_path / RECORDS).glob("unit-*.json"))
    assert len(prepare(ToyConverter(frames_by_log=(4,)), str(tmp_path), PLAIN).manifest) == 4


@dataclass(frozen=True, kw_only=True)
class BrokenPart(BrokenFrom):
    """The same source before and after its repair: what is broken is none of its settings."""

    first: int = dataclasses.field(default=0, compare=False)


SMALL = dataclasses.replace(PLAIN, samples_per_shard=4)


def test_a_repaired_source_is_read_again_after_an_early_end(tmp_path):
    with pytest.raises(ShardError, match="stopped after 30 frames: 20 cannot be used"):
        prepare(BrokenPart(frames_by_log=(100,), first=10), str(tmp_path), SMALL)
    assert len(list(tmp_path.glob("*.tar"))) == 3, "the third shard has two frames that were whole"
    summary = prepare(BrokenPart(frames_by_log=(100,), first=100), str(tmp_path), SMALL)
    assert (len(summary.manifest), summary.num_reused_shards) == (100, 2)
    assert summary.manifest.skipped == {}


@pytest.mark.parametrize("shares", [False, True])
def test_shards_that_skipped_frames_are_made_again_when_told(tmp_path, shares):
    def run(first: int, *, retry_skipped: bool) -> PrepareSummary:
        converter = BrokenPart(frames_by_log=(12,), first=first)
        if not shares:
            return prepare(converter, str(tmp_path), SMALL, retry_skipped=retry_skipped)
        for number in range(2):
            prepare_share(converter, str(tmp_path), SMALL, Share(number=number, count=2), retry_skipped=retry_skipped)
        return join_shares(converter, str(tmp_path), SMALL)

    for retry_skipped in (False, True):
        with pytest.raises(ShardError, match=r"3 of 12 frames cannot be used.*run again with --retry-skipped"):
            run(9, retry_skipped=retry_skipped)
    with pytest.raises(ShardError, match="3 of 12"):
        run(12, retry_skipped=False)
    assert len(run(12, retry_skipped=True).manifest) == 12


def test_a_share_of_which_nothing_was_written_leaves_the_folder_free(tmp_path):
    with pytest.raises(ShardError, match="stopped after 20 frames"):
        prepare_share(BrokenFrom(frames_by_log=(100,)), str(tmp_path), SMALL, Share(number=0, count=1))
    other = dataclasses.replace(SMALL, samples_per_shard=50)
    share = prepare_share(ToyConverter(frames_by_log=(100,)), str(tmp_path), other, Share(number=0, count=2))
    assert share.num_all_shards == 2


def toy_samples(whole: int) -> list[Sample]:
    """100 samples of which the first ones are whole."""
    made = list(ToyConverter(frames_by_log=(100,)).frames("log-000", 0, 100))
    for sample in made[whole:]:
        sample.intensity[0] = np.nan
    return made


@pytest.mark.parametrize(
    ("whole", "sized", "said"),
    [
        (15, True, "stopped after 35 frames: 20 cannot be used, 1 are allowed"),
        (15, False, "85 of 100 frames cannot be used"),  # of one that does not say how long it is, more may be whole
        (0, False, "stopped after 20 frames: 20 cannot be used"),
    ],
)
def test_an_iterator_ends_early(tmp_path, whole, sized, said):
    samples = toy_samples(whole)
    with pytest.raises(ShardError, match=said):
        prepare_samples(samples if sized else (s for s in samples), str(tmp_path), config=SMALL)
    again = prepare_samples(toy_samples(100), str(tmp_path), config=SMALL, retry_skipped=not sized)
    assert (len(again.manifest), again.manifest.skipped) == (100, {})


@pytest.mark.parametrize("backwards", [40, 100])
def test_a_vehicle_may_reverse_for_a_while(tmp_path, backwards):
    """A shard in which it does nothing else is no log; one in which it does so for long ends the preparation."""
    made, x = [], 0.0
    for number, sample in enumerate(ToyConverter(frames_by_log=(100,)).frames("log-000", 0, 100)):
        x += 0.5 if number < 100 - backwards else -0.5
        pose = rigid(np.eye(3), np.array([x, 0.0, 0.0]))
        made.append(dataclasses.replace(sample, timestamp_us=100_000 * number, T_world_ego=pose))
    config = dataclasses.replace(SMALL, samples_per_shard=60)
    if backwards == 40:
        manifest = prepare_samples(made, str(tmp_path), config=config).manifest
        assert (len(manifest), manifest.notes) == (100, ())
        return
    with pytest.raises(ShardError, match=r"log-000 \(59 steps\) the vehicle moves backwards"):
        prepare_samples(made, str(tmp_path), config=config)
    assert not list(tmp_path.glob("*.tar"))


@dataclass(frozen=True, kw_only=True)
class OneLogInverted(ToyConverter):
    """The cameras' poses of one log are the wrong way round."""

    wrong: str

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        for item in super().frames(log, start, stop):
            assert isinstance(item, Sample)
            yield with_cameras(item, np.linalg.inv) if log == self.wrong else item


@pytest.mark.slow
@pytest.mark.parametrize("samples_per_shard", [2, 64])
def test_a_log_with_other_extrinsics_than_the_rest_is_named(tmp_path, samples_per_shard):
    converter = OneLogInverted(frames_by_log=(4,) * 10, wrong="log-006")
    config = dataclasses.replace(PLAIN, samples_per_shard=samples_per_shard)
    notes = prepare(converter, str(tmp_path), config).manifest.notes
    assert [note.split(": likely, ")[0] for note in notes] == [
        "made up",
        "no image is upright in the ego frame (z up) in the first samples of log-006",
    ]
    assert "the camera's pose is the wrong way round" in notes[1]


@dataclass(frozen=True, kw_only=True)
class Dark(ToyConverter):
    """Intensities of some logs, or of their first frames, are those of a scale 255 times as large."""

    dark: tuple[str, ...]

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        for item in super().frames(log, start, stop):
            assert isinstance(item, Sample)
            scale = 1 / 255 if item.key.startswith(self.dark) else 1
            yield dataclasses.replace(item, intensity=item.intensity * np.float32(scale))


@dataclass(frozen=True, kw_only=True)
class DarkRooms(Dark):
    measures_intensity = False


def test_darkness_is_judged_by_logs(tmp_path):
    def notes_of(converter: ToyConverter, name: str) -> tuple[str, ...]:
        return prepare(converter, str(tmp_path / name), SMALL).manifest.notes[1:]

    logs = (6, 6, 6)
    one_frame = notes_of(Dark(frames_by_log=logs, dark=("log-001_000002",)), "frame")
    assert one_frame == ()
    (note,) = notes_of(Dark(frames_by_log=logs, dark=("log-001",)), "log")
    assert (
        note
        == "no intensity of log-001 is above 0.0039 of the value that becomes 1: another scale than in the other logs?"
    )
    with pytest.raises(ShardError, match=r"log-000, log-001, log-002 is above 0.0039 .*0.0039 times it would fit"):
        notes_of(Dark(frames_by_log=logs, dark=("log",)), "set")
    assert notes_of(DarkRooms(frames_by_log=logs, dark=("log",)), "rooms") == ()
    frames: list[int] = []
    with pytest.raises(ShardError, match="no intensity of log-000 is above"):
        prepare(
            Dark(frames_by_log=(300,), dark=("log",)),
            str(tmp_path / "early"),
            PLAIN,
            on_progress=lambda n, *_: frames.append(n),
        )
    assert frames[-1] == 19


@dataclass(frozen=True, kw_only=True)
class Raising(FrameConverter):
    """Frames whose reading raises what no converter foresees."""

    set_name = "raising"

    @property
    def _logs(self):
        return {"log": None}

    def _frames(self, log):
        return [(f"log_{number}", number) for number in range(4)]

    def split_of(self, log):
        return "train"

    def _reader(self, log):
        def read(number):
            if number in (1, 2):
                raise (OverflowError if number == 1 else MemoryError)("an unforeseen one")
            (sample,) = ToyConverter(frames_by_log=(1,)).frames("log-000", 0, 1)
            return sample

        return read


def test_any_exception_of_a_frame_is_its_own_loss():
    items = list(Raising().frames("log", 0, 4))
    assert [isinstance(item, Sample) for item in items] == [True, False, False, True]
    assert (items[1].reason, items[1].key, items[1].log) == ("error", "log_1", "log")
    assert items[1].detail.startswith("OverflowError: an unforeseen one (tests/data/preparing/test_early.py:")
    assert items[2].detail.startswith("MemoryError")


def test_a_source_that_cannot_be_used_is_not_skipped():
    def read():
        raise ShardError("no such layout")

    with pytest.raises(ShardError, match="no such layout"):
        read_or_skip(read, "key")


def test_groups_are_few_and_the_largest_come_first():
    skips = [
        Skipped(reason="meta-broken", key=f"{log}_{n}", detail="d", log=log) for log in "abcdefg" for n in range(3)
    ]
    skips += [Skipped.of(DamagedError("image-broken", "x"), "a_9", "a")]
    lines = grouped(skips)
    assert len(lines) == 6
    assert lines[0] == "meta-broken: 3 frames of a, e.g. a_0 (d)"
    assert lines[-1] == "and 7 frames in 3 more groups of log and reason"


def test_frames_that_are_logs_are_one_group():
    skips = [Skipped(reason="meta-broken", key=name, detail="d", log=name) for name in "abc"]
    assert grouped(skips) == ["meta-broken: 3 frames, e.g. a (d)"]


def test_the_bar_says_what_is_left_out():
    tally = Tally()
    assert skip_text(tally.skipped) == ""
    tally.frame()
    tally.frame(Skipped(reason="image-broken", key="k", detail=""))
    assert skip_text(tally.skipped) == "1 skipped (image-broken 1)"


def test_a_streak_is_broken_by_what_succeeds():
    tally = Tally()
    for number in range(60):
        tally.frame(None if number % 20 == 19 else Skipped(reason="image-broken", key=str(number), detail=""))
        tally.check(allowed=0)
    assert tally.num_frames == 60
    assert np.sum(list(tally.skipped.values())) == 57


def test_frames_that_are_logs_of_their_own_are_one_group() -> None:
    skips = [Skipped(reason="intensity-range", key=f"{n:06d}", detail="bytes", log=f"{n:06d}") for n in range(20)]
    assert grouped(skips) == ["intensity-range: 20 frames, e.g. 000000 (bytes)"]
