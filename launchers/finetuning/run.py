"""One run of any kind from its config: pre-training, or the training of a detector or a segmenter."""

from __future__ import annotations

import logging
from pathlib import Path

from configs.detection import FinetuneConfig
from configs.runs import RunConfig
from data.loading.loader import ShardLoader
from engine.checkpoint import told_by_main
from engine.distributed import World
from engine.errors import CheckpointError
from engine.pretrain import PretrainSummary
from launchers.finetuning.frame_pictures import pictures_of_network
from launchers.finetuning.init import fill
from launchers.finetuning.judging import Judging, judged_steps
from launchers.finetuning.sources import sha256_of
from launchers.runs.files import INIT_FILE
from launchers.training.continuing import Continued
from launchers.training.supervision import Supervised
from launchers.training.train import PRETRAINING, Assembled, RunParts, train

logger = logging.getLogger("tandem.pretrain")


def train_run(config: RunConfig) -> PretrainSummary:
    """Train a run to its end or to a signal; all processes of the run call it. See `launchers.training.train.train`."""
    return train(config, FINETUNING if isinstance(config, FinetuneConfig) else PRETRAINING)


def assemble_network(config: RunConfig, before: Continued | None, world: World) -> Assembled:
    """The network with what it starts from, or with any weights where the run goes on from a checkpoint.

    Raises:
        ConfigError: see `launchers.finetuning.init.fill`.
        CheckpointError: `init` names other weights than the run was built with.
    """
    assert isinstance(config, FinetuneConfig)
    network = config.model.build()
    if before is not None:
        return Assembled(objective=network, fingerprint=_built_with(config, before, world))
    start = fill(network, config)
    if world.is_main:
        logger.info("%s", start)
    return Assembled(
        objective=network,
        fingerprint={"init": start.sha256 or start.identity},
        record={INIT_FILE: start.to_text()},
    )


def _built_with(config: FinetuneConfig, before: Continued, world: World) -> dict[str, str]:
    """What the run that goes on was built with, which is in its checkpoint and may be gone by now."""
    built_with = str((before.state.get("fingerprint") or {})["init"])
    there = told_by_main(lambda: sha256_of(config.init), world)
    if there not in (None, built_with):
        raise CheckpointError(
            f"init={config.init}: {config.run_dir} was built with other weights ({built_with[:12]} then, "
            f"{str(there)[:12]} now). Name those, or start in another run folder"
        )
    return {"init": built_with}


def judging(config: RunConfig, run: Supervised, source: ShardLoader) -> Judging | None:
    """What judges the network while it is trained; None where nothing does."""
    assert isinstance(config, FinetuneConfig)
    if not config.judge.benchmarks:
        return None
    batch = source.samples_per_micro_batch * config.engine.accumulation_steps
    return Judging(config, run.world, steps_per_epoch=source.samples_per_epoch / batch)


def owes_verdict(config: RunConfig, step: int, world: World) -> bool:
    """Whether a run that came to its end at a step was stopped before it was judged there."""
    assert isinstance(config, FinetuneConfig)
    asked = bool(config.judge.benchmarks)
    return asked and told_by_main(lambda: step not in judged_steps(Path(config.run_dir)), world)


FINETUNING = RunParts(assemble=assemble_network, measure=judging, pictures=pictures_of_network, owes=owes_verdict)
