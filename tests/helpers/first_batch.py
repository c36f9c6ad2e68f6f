"""From a converter to a batch: prepare a small set and take the first batch that training would see."""

from __future__ import annotations

from pathlib import Path

from data.batch_spec import BatchSpec
from data.convert.base import Converter
from data.loading.loader import DataConfig, build_loader
from data.preparing.prepare import PrepareConfig, prepare
from data.sample import Batch
from data.storage.manifest import Manifest


def first_batch(converter: Converter, root: Path, split: str, spec: BatchSpec | None = None) -> tuple[Manifest, Batch]:
    """The prepared set and two samples of a split, with pixels and pairs unless other things are wanted."""
    summary = prepare(converter, str(root), PrepareConfig(superpixels=None))
    config = DataConfig(shards=str(root), split=split, micro_batch_size=2, image_size=(48, 80), num_workers=0)
    loader = build_loader(config, spec=spec or BatchSpec(), seed=0, rank=0, world_size=1)
    stream = loader.batches(0)
    batch = next(stream)
    stream.close()  # type: ignore[attr-defined]
    return summary.manifest, batch
