"""Pictures of one run for `tandem inspect` and `tandem report`: samples of its set, seen by its newest weights."""

from __future__ import annotations

from pathlib import Path

from configs.detection import FinetuneConfig
from data.loading.evaluation import load_batch
from data.storage.manifest import load_manifest
from data.storage.reader import SampleError, SampleReader
from data.storage.store import MANIFEST_NAME, is_url
from engine.checkpoint import newest_intact, read_state
from launchers.drawing.canvas import RgbImage
from launchers.drawing.training_pictures import training_pictures
from launchers.finetuning.run_frames import worst_frames
from launchers.training.restore import build_objective, load_run_config


def run_pictures(run_dir: Path, num: int) -> tuple[dict[str, RgbImage], str]:
    """`training_pictures` of some samples of the run's set, with the newest weights; of a detector its worst frames.

    The samples are spread evenly over the validation split, or over the training split where there is none.

    Returns:
        The pictures by name, and why there are none or fewer ("" if nothing is amiss).

    Raises:
        CheckpointError: damaged, or of another version.
    """
    checkpoint = newest_intact(run_dir)
    if checkpoint is None:
        return {}, "no checkpoint yet"
    config = load_run_config(checkpoint)
    if not is_url(config.data.shards) and not (Path(config.data.shards) / MANIFEST_NAME).is_file():
        return {}, f"the run's shards are not at {config.data.shards} (seen from the present folder)"
    manifest = load_manifest(config.data.shards)
    order = manifest.indices("val" if "val" in manifest.splits else config.data.split)
    objective = build_objective(checkpoint, config)
    if isinstance(config, FinetuneConfig):
        return worst_frames(run_dir, objective, config, int(read_state(checkpoint)["step"]), num)
    step = int(read_state(checkpoint)["step"])
    reader, spec, pictures, damaged = SampleReader(manifest), config.method.batch_spec(), {}, []
    for index in order[:: max(1, len(order) // max(num, 1))][:num]:
        try:
            batch = load_batch(reader, [int(index)], config.data, spec)
            moved = load_batch(reader, [int(index)], config.data, spec, augmented=True)
        except SampleError as error:
            damaged.append(str(error))
            continue
        for name, image in training_pictures(objective, batch, step, augmented=moved).items():
            pictures[f"{batch.keys[0]}.{name}"] = image
    return pictures, "; ".join(damaged)
