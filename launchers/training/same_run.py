"""What must be the same on all ranks of a run before it trains, and what the other ranks hear of one that cannot.

Ranks may differ because a node has another copy of the code, an older environment or other data, or because a launcher
gave one of them another command line. `engine.meeting` compares; this says what, and turns the answer into an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from common.files import file_sha256
from common.trees import flat
from configs.load import ConfigError
from configs.runs import RunConfig, dump_run
from data.storage.mixture import open_set
from engine.deepspeed_config import EngineConfig
from engine.distributed import Launch, address, choose_device, read_launch, separate_caches
from engine.errors import PeerFailedError, PeerLostError, RunLockedError, StopRequested
from engine.meeting import Kind, Meeting, Refusal, Statement, judge
from engine.preempt import StopSignals
from launchers.runs.provenance import code_digest, installed_packages
from launchers.training.stages import method_to_build
from models.image.base import ImageEncoderConfig
from models.image.teacher import TeacherConfig

OF_THIS_MACHINE = (
    *("data.shards", "data.cache", "data.num_workers", "data.prefetch", "data.start_method"),
    *("judge.shards", "judge.num_workers"),
)
"""Settings, and sections of them, that may differ between ranks: where a set lies on this machine (the set itself is
compared), and how the machine reads it."""


def facts(config: RunConfig, launch: Launch) -> dict[str, str]:
    """Name -> value of all that must be the same on all ranks: settings, sets, weights, code, versions, kind of device.

    Raises:
        ShardError: a set that cannot be opened.
        ValueError: no device for this rank.
    """
    found = settings(yaml.safe_load(dump_run(config)))
    found["number of processes"] = str(launch.world_size)
    for number, data_set in enumerate(config.data.sets):
        manifest = open_set(data_set, config.data.cache)
        name = "data.shards" if number == 0 else f"data.more[{number - 1}].shards"
        found[name] = f"set {manifest.fingerprint()[:12]} of {len(manifest)} samples"
    method = method_to_build(config)
    networks: dict[str, TeacherConfig | ImageEncoderConfig] = {**method.teachers(), **method.image_networks()}
    for name, network in networks.items():
        path = Path(network.weights.partition(":")[2])
        if path.is_file():  # of what is not there, or a run's folder, the building says more
            found[f"content of method.{name}.weights"] = str(file_sha256(path))[:12]
    found["kind of device"] = choose_device(config.engine.device, launch.local_rank).type
    return found | environment()


def settings(resolved: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name -> value of a resolved config, without what is a machine's own."""
    more = [{name: value for name, value in part.items() if name != "shards"} for part in resolved["data"]["more"]]
    own = {**resolved, "data": {**resolved["data"], "more": more}}
    return {
        name: json.dumps(value)
        for name, value in flat(own).items()
        if not any(name == free or name.startswith(f"{free}.") for free in OF_THIS_MACHINE)
    }


def environment() -> dict[str, str]:
    """The code by its content, and the versions of what it computes with."""
    return {"code": f"content {code_digest()[:12]}", **installed_packages()}


def meet(config: RunConfig, refused: Exception | None, signals: Callable[[], str | None]) -> Meeting | None:
    """Compare this rank with the others; all ranks call it, and all leave it alike.

    Args:
        config: what this rank is about to train.
        refused: why it cannot; the others are told.
        signals: name of the stop signal that this process has got, None without one.

    Returns:
        The meeting, to be kept until torch's process group is there; None where there is one already, or no peer.

    Raises:
        ConfigError: the ranks differ, or one has a mistake in its config.
        RunLockedError, StopRequested, PeerFailedError: a rank may not use the run's folder, was told to stop, failed.
        PeerLostError: not all ranks came, or something else holds the port.
        Exception: `refused`.
    """
    launch = read_launch(os.environ)
    found: dict[str, str] = {}
    if launch.world_size > 1 and refused is None:
        try:
            separate_caches(os.environ)  # here, so that a folder in others' hands is told as well
            found = facts(config, launch)
        except ValueError as error:
            refused = error if isinstance(error, ConfigError) else ConfigError(str(error))
        except Exception as error:
            refused = error
    # A signal ends the wait for the folder's lock, too: that is no failure of the run.
    if (refused is None or isinstance(refused, RunLockedError)) and (name := signals()) is not None:
        refused = StopRequested(name)
    own = _statement(launch, found, refused)
    meeting = None
    if launch.world_size == 1:
        refusal = None
    elif dist.is_initialized():
        everybody: list[Any] = [None] * launch.world_size
        dist.all_gather_object(everybody, own)
        refusal = judge(everybody)
    else:
        meeting = _meeting(launch, config.engine.timeout_min)
        try:
            refusal = meeting.hold(own, stop=signals)
        except PeerLostError as lost:
            if refused is not None:  # nobody could be told, but this rank knows its own reason
                raise refused from lost
            raise
    if refused is not None:
        raise refused
    if refusal is not None:
        raise _error(refusal)
    return meeting


def tell_mistake(error: Exception) -> None:
    """Tell the other ranks, who wait for this one, why it cannot even begin; without peers nothing happens."""
    try:
        launch = read_launch(os.environ)
    except ValueError:
        return  # an environment that names no peers either
    if launch.world_size > 1 and not dist.is_initialized():
        with suppress(PeerLostError), StopSignals() as signals:  # nobody came who could be told
            own = _statement(launch, {}, error)
            _meeting(launch, EngineConfig().timeout_min).hold(own, stop=lambda: signals.received)


def _meeting(launch: Launch, timeout_min: float) -> Meeting:
    host = address(launch.master_addr) if launch.launcher == "srun" else launch.master_addr
    return Meeting(
        host=host,
        port=launch.master_port,
        world_size=launch.world_size,
        timeout_s=60 * timeout_min,
        run=launch.run,
    )


def _statement(launch: Launch, found: Mapping[str, str], error: Exception | None) -> Statement:
    if error is None:
        return Statement(rank=launch.rank, facts=found)
    if isinstance(error, StopRequested):
        return Statement(rank=launch.rank, kind="stopped", error=error.signal)
    kind: Kind = "config" if isinstance(error, ValueError) else "failed"
    if isinstance(error, RunLockedError):
        return Statement(rank=launch.rank, kind="locked", error=str(error))
    return Statement(rank=launch.rank, kind=kind, error=f"{type(error).__name__}: {' '.join(str(error).split())}")


def _error(refusal: Refusal) -> Exception:
    if refusal.kind in ("differ", "config"):
        return ConfigError(refusal.text)
    if refusal.kind == "locked":
        return RunLockedError(refusal.text)
    if refusal.kind == "stopped":
        return StopRequested(refusal.text)
    return PeerLostError(refusal.text) if refusal.kind == "absent" else PeerFailedError(refusal.text)
