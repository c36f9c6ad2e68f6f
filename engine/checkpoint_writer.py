"""Writes the checkpoints of a training run: when the clock asks for one, what is in one, and which is the newest."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine import checkpoint as ckpt
from engine.checkpoint_retry import CheckpointRetry
from engine.interfaces import BatchLike, BatchSource
from engine.monitor import mean_of_each
from engine.rng import get_rng_state
from engine.run_state import Plan, RunState
from engine.zero import ZeroEngine


def software_versions() -> dict[str, str]:
    """Of the packages that a run's numbers come from; checkpoints hold them."""
    packages = ("torch", "deepspeed", "numpy", "safetensors")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}


class CheckpointWriter:
    """Writes the run's checkpoints.

    Attributes:
        newest: folder of the last one that was written or continued from.
    """

    def __init__(
        self, run_dir: Path, config: ckpt.CheckpointConfig, plan: Plan, engine: ZeroEngine, *, newest: Path | None
    ) -> None:
        self.newest = newest
        self._run_dir, self._config, self._plan, self._engine = run_dir, config, plan, engine
        self._retry = CheckpointRetry(config)
        self._saved_at = time.monotonic()

    def due_by_time(self) -> bool:
        """Whether enough minutes have passed since the last one, by the clock of rank 0."""
        minutes = (time.monotonic() - self._saved_at) / 60
        return self._engine.world.is_main and 0 < self._config.every_min <= minutes

    def write(
        self,
        run: RunState,
        source: BatchSource[BatchLike],
        fingerprint: Mapping[str, Any],
        resolved_config: Mapping[str, Any],
        *,
        must: bool,
    ) -> None:
        """Write one; all ranks call it. One that fails is only a warning, unless it must be there.

        Raises:
            CheckpointError: see `engine.checkpoint_retry`.
        """
        position = run.step * self._plan.accumulation_steps
        write = partial(
            ckpt.save_checkpoint,
            self._run_dir,
            run.step,
            weights=self._engine.weights(),
            rank_state={
                "rng": get_rng_state(),
                # At stage 0 all ranks have the same optimizer state: rank 0 writes it for all.
                "shard": self._engine.shard() if self._engine.stage > 0 or self._engine.world.is_main else None,
                "window": {"sums": dict(run.window.sums), "count": run.window.count},
            },
            state=self._state(run) | {"fingerprint": dict(fingerprint), "source": source.state(position)},
            config=resolved_config,
            world=self._engine.world,
            keep=self._config.keep,
            keep_every=self._config.keep_every,
        )
        self.newest = self._retry.write(write, must=must) or self.newest
        self._saved_at = time.monotonic()

    def _state(self, run: RunState) -> dict[str, Any]:
        return run.state() | {
            "num_steps": self._plan.num_steps,
            "loss_scale": self._engine.loss_scale.state(),
            "engine": dict(self._plan.parallelism),
            "parameters": self._engine.layout.record(),
            # As it would be on a single process, for a run that continues on another number of them.
            "window": {"sums": mean_of_each(run.window.sums, self._engine.world), "count": run.window.count},
            "versions": software_versions(),
        }
