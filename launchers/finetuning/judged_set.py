"""The frames that a network is judged on while it is trained, and afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from configs.detection import FinetuneConfig
from configs.load import ConfigError
from data.loading.loader import DataConfig
from data.storage.manifest import Manifest, load_manifest
from engine.distributed import World
from engine.downstream.common import thin
from launchers.evaluation.detections import frames_config


@dataclass(frozen=True, kw_only=True)
class JudgedSet:
    """Some frames.

    Attributes:
        manifest: of their set.
        indices: of the frames.
        data: how they are read.
    """

    manifest: Manifest
    indices: Int[np.ndarray, " n"]
    data: DataConfig

    @classmethod
    def of(cls, config: FinetuneConfig) -> JudgedSet:
        """As the section `judge` asks.

        Raises:
            ConfigError: an unknown split.
            ShardError: no such set.
        """
        manifest = load_manifest(config.judge.shards or config.data.shards, config.data.cache)
        if not {*config.judge.split.split("+")} <= {*manifest.splits}:
            raise ConfigError(
                f"judge.split: got {config.judge.split!r}, expected one of {', '.join(sorted({*manifest.splits}))}, or "
                f"several joined by +, of {manifest.root}; judge.shards names another set"
            )
        return cls(
            manifest=manifest,
            indices=thin(manifest.indices(config.judge.split), config.judge.limit),
            data=frames_config(config.data, num_workers=config.judge.num_workers),
        )

    def share(self, world: World) -> Int[np.ndarray, " m"]:
        """A rank's frames, equally many on all ranks: the last ones begin again with the first."""
        per_rank = -(-len(self.indices) // world.world_size)
        return np.resize(self.indices, per_rank * world.world_size)[world.rank :: world.world_size]
