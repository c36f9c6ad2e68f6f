"""A data set without files, for tests of preparation; also run as a script by those that kill it."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from data.convert.base import Converter, Skipped
from data.preparing.prepare import PrepareConfig, prepare
from data.sample import Sample
from tests.helpers.samples import CAMERA_NAMES, CLASS_NAMES, make_sample


@dataclass(frozen=True, kw_only=True)
class ToyConverter(Converter):
    """Logs of random samples; `damaged` frames have a NaN point, `skipped` ones are refused by the converter."""

    frames_by_log: tuple[int, ...] = (5, 3, 4, 12)
    damaged: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    whole_logs: bool = False
    delay_s: float = dataclasses.field(default=0.0, compare=False)
    crash_in: str | None = dataclasses.field(default=None, compare=False)

    set_name: ClassVar[str] = "toy"
    class_names: ClassVar[tuple[str, ...]] = CLASS_NAMES

    def settings(self) -> dict[str, Any]:
        names = ("frames_by_log", "damaged", "skipped", "whole_logs")
        return {name: getattr(self, name) for name in names}

    def logs(self) -> tuple[str, ...]:
        return tuple(f"log-{number:03d}" for number in range(len(self.frames_by_log)))

    def camera_names(self) -> tuple[str, ...]:
        return CAMERA_NAMES

    def split_of(self, log: str) -> str:
        return "val" if log.endswith("2") else "train"

    def num_frames(self, log: str) -> int:
        return self.frames_by_log[int(log[-3:])]

    def notes(self) -> tuple[str, ...]:
        return ("made up",)

    def frames(self, log: str, start: int, stop: int) -> Iterator[Sample | Skipped]:
        for frame in range(start, stop):
            key = f"{log}_{frame:06d}"
            if key == self.crash_in:
                raise RuntimeError(f"crash in {key}")
            time.sleep(self.delay_s)
            if key in self.skipped:
                yield Skipped(reason="member-missing", key=key, detail="as asked")
                continue
            rng = np.random.default_rng([int(log[-3:]), frame])
            sample = make_sample(rng, key=key, log=log, frame=frame, superpixels=False, depth=False)
            if key in self.damaged:
                sample.points_lidar[3, 1] = np.nan
            yield sample


def slow_prepare(root: str, workers: int, delay_s: float) -> None:
    prepare(ToyConverter(delay_s=delay_s), root, PrepareConfig(samples_per_shard=3), workers=workers)


if __name__ == "__main__":
    slow_prepare(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
