"""What protocols of whole methods read: sweeps with their images, turned and moved; and what they leave behind."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import replace_file
from configs.load import ConfigError
from data.batch_spec import BatchSpec
from data.loading.evaluation import image_batches
from data.loading.loader import DataConfig
from data.sample import Batch
from data.storage.manifest import Manifest
from data.storage.reader import SampleReader
from data.views.augment import NO_AUGMENTATION, PointAugmentConfig
from engine.downstream.common import Samples
from engine.downstream.registration import PoseParts, Registered, RegistrationConfig
from launchers.drawing.recall import ERRORS_FILE, PICTURE_FILE, recall_figure
from launchers.evaluation.common import Evaluation
from launchers.runs.files import REGISTRATION_FOLDER


def pose_parts(evaluation: Evaluation) -> PoseParts:
    """For the protocols of `tower="objective"`.

    Raises:
        ConfigError: the errors of earlier calls cannot be read.
    """
    read = PerturbedImages(evaluation.manifest, evaluation.run.data, evaluation.config.registration)
    return PoseParts(read=read, keep=_Kept(evaluation.folder / REGISTRATION_FOLDER))


@dataclass(frozen=True)
class PerturbedImages:
    """Reads sweeps with their images, perturbed (the engine's `Reader`)."""

    manifest: Manifest
    run: DataConfig
    config: RegistrationConfig

    def __call__(self, samples: Samples) -> Iterator[Batch]:
        """Batches; perturbations are a function of the seed and the sweep, poses are always read."""
        points = PointAugmentConfig(
            flip=False,
            drop_max_side=0.0,
            max_rotation_rad=math.radians(self.config.max_rotation_deg),
            translate_m=self.config.translate_m,
        )
        data = dataclasses.replace(
            self.run,
            augment=dataclasses.replace(NO_AUGMENTATION, points=points),
            cameras_per_sample=self.config.cameras_per_sample,
            num_workers=0,
        )
        reader, indices = SampleReader(self.manifest), np.asarray(samples.indices, dtype=np.int64)
        batches = image_batches(
            reader, indices, data, spec=BatchSpec(), batch_size=samples.batch_size, seed=samples.seed
        )
        return (batch for _, batch in batches)


class _Kept:
    """Errors of every image and their curves, written after each pass; those of earlier calls stay."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._errors: dict[str, dict[str, list[float | None]]] = {}
        file = folder / ERRORS_FILE
        if file.is_file():
            try:
                self._errors = json.loads(file.read_text())
            except ValueError as error:
                raise ConfigError(f"{file}: not readable as JSON ({error}); remove it") from error

    def __call__(self, name: str, seed: int, done: Registered) -> None:
        self._errors[f"{name}, seed {seed}"] = {  # null: no pose was found
            key: [value if math.isfinite(value) else None for value in getattr(done.errors, key).tolist()]
            for key in ("rte_m", "rre_deg", "rre_euler_deg")
        }
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._folder / ERRORS_FILE, (json.dumps(self._errors, indent=1) + "\n").encode())
        replace_file(self._folder / PICTURE_FILE, recall_figure(self._errors))
