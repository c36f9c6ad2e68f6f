"""The family of protocols that measure whole methods: registration of cameras to sweeps."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from configs.load import ConfigError
from data.batch_spec import BatchSpec
from data.loading.evaluation import image_batches
from data.loading.loader import DataConfig
from data.sample import Batch
from data.storage.shards import Manifest, SampleReader, replace_file
from data.views.augment import NO_AUGMENTATION, PointAugmentConfig
from engine.downstream.common import Splits, thin
from engine.downstream.protocols import Initialisation, Planned
from engine.downstream.registration import MAIN_METRIC, Registered, RegistrationConfig, registration
from engine.downstream.results import Result
from launchers.drawing.recall import ERRORS_FILE, PICTURE_FILE, recall_figure
from launchers.evaluation.common import Evaluation, fitting, splits_of
from launchers.runs.files import REGISTRATION_FOLDER

_CALIBRATION_SEED = 1_000_003
"""Perturbations of the train sweeps that BatchNorm statistics come from; no seed of a protocol."""


def measure_registration(inits: Sequence[Initialisation], evaluation: Evaluation) -> Iterator[Result]:
    """Poses of cameras against perturbed sweeps of the test split; a `launchers.evaluation.common.Family`.

    Raises:
        ConfigError: the method finds no poses, or settings do not fit the data.
    """
    manifest, config = evaluation.manifest, evaluation.config
    kept = _Kept(evaluation)
    with fitting(manifest):
        splits = splits_of(manifest, config, labelled=False)
        chosen = thin(splits.train, config.calibration_sweeps) if config.calibration_sweeps else splits.train[:0]
        yield from registration(
            inits,
            PerturbedImages(manifest, evaluation.run.data, config.registration, splits.test, chosen),
            _planned(evaluation, splits, len(chosen)),
            config.registration,
            num_sweeps=len(splits.test),
            device=evaluation.device,
            known=evaluation.known,
            progress=evaluation.progress,
            keep=kept,
        )
    kept.write()


def _planned(evaluation: Evaluation, splits: Splits, calibration_sweeps: int) -> Planned:
    recipe = evaluation.config.registration
    settings = {k: v for k, v in dataclasses.asdict(recipe).items() if k != "seeds"}
    settings["translate_m"] = list(recipe.translate_m)  # as results.json gives it back
    return Planned(
        protocol="registration",
        dataset=evaluation.manifest.set_name,
        labels="none",
        seeds=recipe.seeds,
        metric=MAIN_METRIC,
        settings={**settings, "calibration_sweeps": calibration_sweeps, "test_sweeps": len(splits.test)},
        context=evaluation.context("objective"),
        task=[evaluation.manifest.set_name, splits.test.tolist()],
    )


@dataclass(frozen=True)
class PerturbedImages:
    """Reads sweeps with their images, perturbed (the engine's `PerturbedSweeps`)."""

    manifest: Manifest
    run: DataConfig
    config: RegistrationConfig
    test: Int[np.ndarray, " m"]
    train: Int[np.ndarray, " n"]

    def __call__(self, seed: int) -> Iterator[Batch]:
        """The test sweeps, one a batch."""
        return self._read(self.test, seed)

    def calibration(self) -> Iterator[Batch]:
        """The chosen train sweeps."""
        return self._read(self.train, _CALIBRATION_SEED)

    def _read(self, indices: Int[np.ndarray, " k"], seed: int) -> Iterator[Batch]:
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
        reader = SampleReader(self.manifest)
        return (batch for _, batch in image_batches(reader, indices, data, spec=BatchSpec(), batch_size=1, seed=seed))


class _Kept:
    """Errors of every image, for curves; those of earlier calls stay."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._folder = evaluation.folder / REGISTRATION_FOLDER
        self._errors: dict[str, dict[str, list[float | None]]] = {}
        file = self._folder / ERRORS_FILE
        if file.is_file():
            try:
                self._errors = json.loads(file.read_text())
            except ValueError as error:
                raise ConfigError(f"{file}: not readable as JSON ({error}); remove it") from error

    def __call__(self, name: str, seed: int, done: Registered) -> None:
        columns = {
            "rte_m": done.errors.rte_m,
            "rre_deg": done.errors.rre_deg,
            "rre_euler_deg": done.errors.rre_euler_deg,
        }
        self._errors[f"{name}, seed {seed}"] = {
            key: [value if math.isfinite(value) else None for value in column.tolist()]
            for key, column in columns.items()
        }

    def write(self) -> None:
        """errors.json and recall.png; nothing where nothing was measured."""
        if not self._errors:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        tree: dict[str, Any] = self._errors
        replace_file(self._folder / ERRORS_FILE, (json.dumps(tree, indent=1) + "\n").encode())
        replace_file(self._folder / PICTURE_FILE, recall_figure(self._errors))
