"""What can be checked before anything is queued: shards, output folder, partition, one batch. One clear message each.

A job that waits two days in a queue to say that a path is wrong is a bad way to learn of it.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from configs.load import ConfigError
from configs.runs import RunConfig
from configs.schema import SlurmConfig
from data.loading.evaluation import load_batch
from data.loading.fractions import FractionConfig
from data.loading.in_use import check_suits
from data.loading.loader import DataConfig
from data.sample import Batch
from data.storage.manifest import load_manifest
from data.storage.mixture import open_sets
from data.storage.prefetch import check_cache
from data.storage.reader import SampleError, SampleReader
from data.storage.store import is_url
from engine.errors import DryBatchError
from launchers.runs import slurm
from launchers.training.stages import method_without_weights
from models.methods.base import MethodConfig

_TOY_SAMPLES = 2
_TRIED_SAMPLES = 20
_NAMES_SHOWN = 8


def check_cluster(cluster: SlurmConfig) -> None:
    """Partitions and account exist on this cluster.

    Raises:
        ConfigError: one of them does not; lists what there is.
        SlurmError: SLURM is not here or does not answer.
    """
    known = slurm.partitions()
    for name, partition in (("partition", cluster.partition), ("evaluate.partition", cluster.evaluate.partition)):
        if partition is not None and partition not in known:
            raise ConfigError(f"cluster.{name}: {partition!r} is no partition here; expected one of {_listed(known)}")
    accounts = slurm.accounts()
    if cluster.account is not None and accounts is not None and cluster.account not in accounts:
        raise ConfigError(
            f"cluster.account: {cluster.account!r} is none of your accounts; expected one of {_listed(accounts)}"
        )


def check_folder(folder: Path) -> None:
    """The folder can be made and written to.

    Raises:
        ConfigError: it cannot, with the system's reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Access rights alone do not show a read-only file system.
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable"):
            pass
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}; choose another run_dir or root") from error


def check_spelling(path: Path, *, holds_logs: bool) -> None:
    """A path that SLURM and batch scripts take as it is.

    Args:
        path: of a run, or of a folder of runs.
        holds_logs: SLURM writes logs below it, in whose names it expands `%j` and the like.

    Raises:
        ConfigError: a character that does not survive.
    """
    bad = sorted({c for c in str(path) if (holds_logs and c in "%\\'\"") or not c.isprintable()})
    if bad:
        what = "SLURM cannot write logs below" if holds_logs else "batch scripts cannot work with"
        raise ConfigError(
            f"{str(path)!r}: {what} a folder with {', '.join(map(repr, bad))} in its path; choose another run_dir or "
            "root"
        )


def check_options(cluster: SlurmConfig) -> None:
    """What is asked of SLURM in words survives as lines of a batch script, and a job's name in the names of logs.

    Raises:
        ConfigError: a character that does not survive.
    """
    words = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}
    words |= {"evaluate.partition": cluster.evaluate.partition}
    words |= {f"sbatch.{option}": value for option, value in cluster.sbatch.items()}
    for name, value in words.items():
        bad = [c for c in f"{name}{value or ''}" if not c.isprintable()]
        if bad:
            raise ConfigError(
                f"cluster.{name}: got {value!r}, expected one line: {bad[0]!r} would end the line of the batch script"
            )
    name = cluster.sbatch.get("job-name", "")
    if not re.fullmatch(r"[A-Za-z0-9._+=@:,-]*", name):
        raise ConfigError(
            f"cluster.sbatch.job-name: got {name!r}, expected letters, digits and any of . _ + = @ : , -: SLURM "
            "makes the names of logs from it"
        )


def check_runs(configs: Sequence[RunConfig], *, one_batch: bool = True) -> float:
    """Check that shards are reachable and, with `one_batch`, that each method at toy width makes a gradient.

    What several runs share is checked once. Returns the seconds that it took.

    Raises:
        ShardError: no such set, or damaged.
        ConfigError: a setting that does not fit the data or the method.
        DryBatchError: the batch failed.
    """
    began = time.monotonic()
    seen: list[tuple[DataConfig, MethodConfig]] = []
    for config in configs:
        for data_set in config.data.sets:
            one = open_sets((data_set,))
            check_suits(
                one.reader.manifest, one.values("num_pairs"), config.method.batch_spec(), config.data.max_skip_share
            )
        if any(is_url(data_set.shards) for data_set in config.data.sets):
            try:
                opened = open_sets(config.data.sets, config.data.cache)
                check_cache(config.data.cache, opened, config.data.shards_per_group, warn=False)
            except ValueError as error:
                raise ConfigError(f"{config.run_dir}: {error}") from error
        # The batch is of the first samples, whichever of them keep their labels.
        tried = replace(config.data, fraction=FractionConfig()), config.method
        if one_batch and tried not in seen:
            seen.append(tried)
            _one_batch(config)
    return time.monotonic() - began


def _one_batch(config: RunConfig) -> None:
    try:
        objective = method_without_weights(config).toy().build()
        batch = _first_batch(config)
        loss = objective(batch).total
        loss.backward()
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
    except OSError as error:
        raise ConfigError(f"{config.run_dir}: the method cannot be built: {error}") from error
    except ValueError as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{config.run_dir}: {error}") from error
    except RuntimeError as error:
        raise DryBatchError(f"{config.run_dir}: one batch at toy width failed: {error}; nothing was queued") from error
    finite = bool(torch.isfinite(loss)) and all(bool(torch.isfinite(g).all()) for g in gradients)
    if not gradients or not finite:
        what = "no gradient" if not gradients else f"loss {float(loss):g} or its gradient is not finite"
        raise DryBatchError(f"{config.run_dir}: one batch at toy width: {what}")


def _first_batch(config: RunConfig) -> Batch:
    """The first samples that the method can use; one without a partner is no damage.

    Raises:
        SampleError: a damaged sample, or none with a partner among the first.
    """
    manifest = load_manifest(config.data.shards)
    indices = [int(i) for i in manifest.indices(config.data.split)[: config.data.limit][:_TRIED_SAMPLES]]
    reader, spec = SampleReader(manifest), config.method.batch_spec()
    usable: list[int] = []
    for index in indices:
        try:
            load_batch(reader, [index], config.data, spec)
            usable.append(index)
        except SampleError as error:
            if error.reason != "no-partner" or (index == indices[-1] and not usable):
                raise
        if len(usable) == _TOY_SAMPLES:
            break
    return load_batch(reader, usable, config.data, spec)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN]) or "none"
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
