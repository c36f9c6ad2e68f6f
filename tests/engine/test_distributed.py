from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest
import torch

from engine.deepspeed_config import EngineConfig, check_precision, deepspeed_dict
from engine.distributed import (
    CACHES,
    World,
    address,
    agree_any,
    choose_device,
    first_host,
    mean_over_ranks,
    read_launch,
    separate_caches,
    slurm_port,
)
from engine.preempt import StopSignals
from engine.zero import LossScale
from tests.helpers.toy_objective import ToyObjective

CPU = torch.device("cpu")


def test_launchers_are_told_apart() -> None:
    assert read_launch({}).launcher == "alone"
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    launch = read_launch(torchrun)
    assert (launch.launcher, launch.rank, launch.world_size, launch.local_rank) == ("torchrun", 3, 4, 1)
    srun = {
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_NODELIST": "gpu[07-08],x3",
        "SLURM_JOB_ID": "1234567",
        "SLURM_STEP_ID": "0",
    }
    launch = read_launch(srun)
    assert (launch.launcher, launch.rank, launch.world_size, launch.master_addr) == ("srun", 5, 8, "gpu07")
    assert read_launch(srun | {"SLURM_JOB_ID": "1234568"}).master_port != launch.master_port
    assert (launch.run, read_launch(torchrun | {"TORCHELASTIC_RUN_ID": "a"}).run) == ("job 1234567, step 0", "a")
    # A batch script's own shell has SLURM variables but no peers.
    assert read_launch({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}).launcher == "alone"


def test_half_set_environment_is_refused() -> None:
    with pytest.raises(ValueError, match="LOCAL_RANK, MASTER_ADDR, MASTER_PORT missing"):
        read_launch({"RANK": "0", "WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"RANK": "one"}, "RANK='one', expected a whole number"),
        ({"MASTER_PORT": ""}, "MASTER_PORT='', expected a whole number"),
        ({"RANK": "2"}, "rank 2 of 2; expected ranks from 0"),
    ],
)
def test_a_wrong_environment_is_named(wrong: dict[str, str], words: str) -> None:
    right = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "n1", "MASTER_PORT": "29500"}
    with pytest.raises(ValueError, match=words):
        read_launch(right | wrong)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("gpu[003-010,12],x1", "gpu003"), ("node7", "node7"), ("a-b,c", "a-b"), ("n[5]", "n5"), ("r[1-2]-ib", "r1-ib")],
)
def test_first_host(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_no_gpu_for_this_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu", 3) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto", 0) == CPU
    with pytest.raises(ValueError, match=r"torch sees 0; .* engine.device=cpu"):
        choose_device("cuda", 0)


def test_agreement_alone(world: World) -> None:
    assert agree_any([True, False], world) == [True, False]
    assert mean_over_ranks(torch.tensor([1.0, 2.0]), world).tolist() == [1.0, 2.0]


def test_precisions_that_cannot_work_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"precision=fp16 needs a GPU.*set engine.precision=bf16"):
        check_precision(EngineConfig(precision="fp16"), ToyObjective(), CPU)
    with pytest.raises(ValueError, match=r"bf16_native at engine.zero_stage=2.*BatchNorm.*backbone.norm"):
        check_precision(EngineConfig(precision="bf16_native", zero_stage=2), ToyObjective(), CPU)
    with pytest.raises(ValueError, match=r"needs engine.zero_stage 1, 2 or 3"):
        check_precision(EngineConfig(precision="bf16_native"), ToyObjective(norm=False), CPU)
    check_precision(EngineConfig(precision="bf16_native", zero_stage=2), ToyObjective(norm=False), CPU)
    check_precision(EngineConfig(precision="fp16"), ToyObjective(), torch.device("cuda"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("zero_stage", 4),
        ("accumulation_steps", 0),
        ("clip_norm", -1.0),
        ("max_nonfinite_in_a_row", 0),
        ("timeout_min", 0.0),
    ],
)
def test_engine_ranges(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: got {value}"):
        EngineConfig(**{field: value})  # type: ignore[arg-type]


def test_the_dictionary_keeps_weights_in_fp32_for_bf16() -> None:
    made = deepspeed_dict(EngineConfig(precision="bf16", zero_stage=2), micro_batch_size=4, device=CPU)
    assert made["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert "bf16" not in made
    assert made["zero_optimization"]["stage"] == 2


def test_loss_scale_falls_after_overflow_and_grows_after_quiet() -> None:
    scale = LossScale(2)
    assert scale.value == 4.0
    assert [scale.after(overflow=True) for _ in range(3)] == [True, True, False]  # at 1 there is nothing left to blame
    assert scale.value == 1.0
    for _ in range(LossScale.GROWTH_INTERVAL):
        assert not scale.after(overflow=False)
    assert scale.value == 2.0
    fixed = LossScale(None)
    assert not fixed.after(overflow=True)
    assert fixed.value == 1.0


def test_signals_set_a_flag_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)  # a stop is under way: no KeyboardInterrupt
        assert signals.received == "SIGUSR1"
    assert signal.getsignal(signal.SIGTERM) is before
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_neighbouring_jobs_share_no_port() -> None:
    """1,280 jobs with neighbouring numbers (elements of an array are jobs of their own) x 16 steps: no port twice."""
    for first in (1, 1279, 987654):
        ports = [slurm_port(job, step, 0) for job in range(first, first + 1280) for step in range(16)]
        assert len(set(ports)) == len(ports)
        assert min(ports) >= 1024
        assert max(ports) < 32768  # what Linux hands out by itself begins there


def test_a_requeued_job_takes_another_port_of_its_own() -> None:
    own = {slurm_port(12, step, 0) for step in range(16)}
    ports = [slurm_port(12, 0, restarts) for restarts in range(16)]
    assert len(set(ports)) == 16
    assert set(ports) == own


def test_a_node_without_a_host_name_is_reached_at_slurms_address(tmp_path, monkeypatch):
    assert address("localhost") == "localhost"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert address("node.invalid") == "node.invalid"  # no scontrol: the rendezvous will name it
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\necho "NodeName=$4 NodeAddr=10.0.0.7 NodeHostName=h7 Port=6818"\n')
    scontrol.chmod(0o755)
    assert address("node.invalid") == "10.0.0.7"


def test_jobs_and_attempts_share_no_compile_cache(tmp_path: Path) -> None:
    folders: list[str] = []
    for job, restarts in (("12", "0"), ("13", "0"), ("12", "1")):
        env = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": restarts, "TMPDIR": str(tmp_path)}
        env |= {"TRITON_CACHE_DIR": "/mine"}
        separate_caches(env)
        assert env["TRITON_CACHE_DIR"] == "/mine"  # what the user chose stays
        assert env["TORCH_EXTENSIONS_DIR"].startswith(f"{tmp_path}/tandem_")
        folders += [env["TORCH_EXTENSIONS_DIR"], env["TORCHINDUCTOR_CACHE_DIR"]]
    assert len(set(folders)) == 6
    for folder in folders:
        assert stat.S_IMODE(Path(folder).parent.stat().st_mode) == 0o700


def test_outside_slurm_no_compile_cache_lies_where_others_write(tmp_path: Path) -> None:
    env = {"XDG_CACHE_HOME": str(tmp_path)}
    separate_caches(env)
    assert env.pop("TORCHINDUCTOR_CACHE_DIR") == str(tmp_path / "tandem" / "torch_inductor")
    assert env == {"XDG_CACHE_HOME": str(tmp_path)}  # the others' defaults lie in the user's home


def test_a_user_without_a_home_gets_caches_below_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    env = {"TMPDIR": str(tmp_path)}
    separate_caches(env)
    assert {Path(env[name]).parent for name in CACHES} == {tmp_path / f"tandem_{os.getuid()}_alone_0"}


def test_a_compile_cache_that_others_may_write_is_refused(tmp_path: Path) -> None:
    env = {"SLURM_JOB_ID": "12", "TMPDIR": str(tmp_path)}
    planted = tmp_path / f"tandem_{os.getuid()}_12_0"
    planted.mkdir()
    planted.chmod(0o777)
    with pytest.raises(PermissionError, match=r"can be written by others \(mode 777\).*set TMPDIR"):
        separate_caches(env)
