from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

from common.run_files import damage, list_checkpoints, step_of
from engine.checkpoint import (
    CheckpointConfig,
    check_same,
    load_weights,
    newest_intact,
    newest_records,
    read_rank_state,
    save_checkpoint,
)
from engine.distributed import World
from engine.errors import CheckpointError
from engine.log_files import drop_lines_after
from tests.helpers.toy_run import losses, run_toy


def save(run_dir: Path, step: int, world: World, *, keep: int = 3, keep_every: int = 0, value: float = 1.0) -> Path:
    return save_checkpoint(
        run_dir,
        step,
        weights={"backbone.w": torch.full((2,), value)},
        rank_state={"rng": {"python": (3, (1, 2), None)}, "shard": {"m": torch.ones(3)}},
        state={"fingerprint": {}},
        config={"a": 1},
        world=world,
        keep=keep,
        keep_every=keep_every,
    )


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def toy(run_dir: Path, **more: Any) -> dict[str, Any]:
    return {"run_dir": str(run_dir), "settings": {"checkpoint": {"every_steps": 3}}} | more


def test_keeps_the_last_k_and_no_temporary_folder(world: World, tmp_path: Path) -> None:
    for step in (2, 4, 100, 1000):
        save(tmp_path, step, world, keep=2)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert names == ["step_00000100", "step_00001000"]
    assert newest_intact(tmp_path) == tmp_path / "checkpoints" / "step_00001000"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_of_a_checkpoint_are_what_the_umask_says(world: World, tmp_path: Path, umask: int) -> None:
    """safetensors makes files that their owner alone can read."""
    before = os.umask(umask)
    try:
        folder = save(tmp_path, 1, world)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("name", ["step_00000004.bak", "step_00000009_backup", "step_9", "step_\u0661\u0662\u0663"])
def test_a_copy_of_a_checkpoint_is_left_alone(world: World, tmp_path: Path, name: str) -> None:
    """It is somebody's own: never removed, never the newest, never the end of the run."""
    copy = tmp_path / "checkpoints" / name
    shutil.copytree(save(tmp_path, 4, world, keep=1), copy)
    for step in (6, 8):
        save(tmp_path, step, world, keep=1, keep_every=5)
    assert sorted(p.name for p in copy.parent.iterdir()) == sorted([name, "step_00000008"])
    assert newest_intact(tmp_path) == copy.parent / "step_00000008"
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [8]
    assert load_weights(copy).keys() == load_weights(tmp_path).keys()  # named by its path, it is read


def test_milestones_stay(world: World, tmp_path: Path) -> None:
    for step in (5, 10, 14, 20, 23, 24):
        save(tmp_path, step, world, keep=1, keep_every=10)
    assert [step_of(p) for p in list_checkpoints(tmp_path)] == [24, 20, 10]


def test_a_milestone_is_due_beside_the_usual_checkpoints() -> None:
    config = CheckpointConfig(every_steps=4, keep_every=6)
    assert [step for step in range(1, 13) if config.due(step)] == [4, 6, 8, 12]
    assert not CheckpointConfig(every_steps=0).due(1000)
    with pytest.raises(ValueError, match="keep_every: got -1"):
        CheckpointConfig(keep_every=-1)


def test_a_half_written_checkpoint_does_not_count(world: World, tmp_path: Path) -> None:
    good = save(tmp_path, 2, world)
    half = tmp_path / "checkpoints" / ".tmp_step_00000004"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert newest_intact(tmp_path) == good
    save(tmp_path, 4, world)  # the left-over is in nobody's way
    assert not half.exists()


def test_records_of_the_wrong_kinds_are_passed_over(world: World, tmp_path: Path) -> None:
    before, newest = save(tmp_path, 1, world), save(tmp_path, 2, world)
    for damaged in ('{"step": "many"}', '{"step": 2, "num_steps": []}', "[" * 9999, "{}", "[]", ""):
        (newest / "state.json").write_text(damaged)
        records = newest_records(tmp_path)
        assert records is not None
        assert records[0]["step"] == 1, damaged
    (before / "config.json").write_text('["a", "list"]')
    assert newest_records(tmp_path) is None


@pytest.mark.parametrize("name", ["weights.safetensors", "rank_0000.pt", "state.json", "config.json"])
def test_every_kind_of_damage_is_seen(
    world: World, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = save(tmp_path, 2, world), save(tmp_path, 4, world)
    assert damage(new) is None
    spoil(new / name)
    assert damage(new) == f"{name} does not match its sha256"
    with caplog.at_level(logging.WARNING):
        assert newest_intact(tmp_path) == old
    assert "step_00000004 is damaged" in caplog.text
    (new / name).unlink()
    assert damage(new) == f"{name} is missing"
    (old / "files.json").write_text("[")
    with pytest.raises(
        CheckpointError, match=r"none of the 2 checkpoints .* is intact \(step_00000004: .* is missing; step_0"
    ):
        newest_intact(tmp_path)


def test_nothing_in_a_checkpoint_is_executed(world: World, tmp_path: Path) -> None:
    folder = save(tmp_path, 2, world)

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "executed",))  # type: ignore[return-value]

    torch.save({"rng": Evil()}, folder / "rank_0000.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
        read_rank_state(folder, 0)
    assert not (tmp_path / "executed").exists()


def test_weights_from_a_file_a_checkpoint_or_a_run(world: World, tmp_path: Path) -> None:
    folder = save(tmp_path, 2, world, value=3.0)
    for path in (tmp_path, folder, folder / "weights.safetensors"):
        assert load_weights(path, prefix="backbone.")["w"].tolist() == [3.0, 3.0]
    with pytest.raises(CheckpointError, match="found none of them"):
        load_weights(tmp_path / "checkpoints")
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(tmp_path / "nothing.safetensors")
    spoil(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match="does not match its sha256"):
        load_weights(folder)


def test_changed_model_is_refused_with_the_fields(world: World, tmp_path: Path) -> None:
    first = {"method": {"name": "toy", "width": 16, "sizes": (1, 2)}}
    check_same(first, {"method": {"name": "toy", "width": 16, "sizes": [1, 2]}}, tmp_path)
    later = {"method": {**first["method"], "chunk_rows": None}}
    check_same(first, later, tmp_path)  # a setting of a later version that is not used
    check_same(later, first, tmp_path)
    with pytest.raises(CheckpointError, match=r"chunk_rows: 'absent' in the checkpoint, 8 now"):
        check_same(first, {"method": {**first["method"], "chunk_rows": 8}}, tmp_path)
    with pytest.raises(CheckpointError, match=r"width: 16 in the checkpoint, None now"):
        check_same(first, {"method": {**first["method"], "width": None}}, tmp_path)
    run_toy(toy(tmp_path, fingerprint=first))
    changed = {"method": {"name": "toy", "width": 32, "sizes": (1, 2), "heads": 2}}
    with pytest.raises(CheckpointError) as e:
        run_toy(toy(tmp_path, fingerprint=changed))
    assert "method.width: 16 in the checkpoint, 32 now" in str(e.value)
    assert "method.heads: 'absent' in the checkpoint, 2 now" in str(e.value)
    assert "name" not in str(e.value)


def test_a_changed_layout_is_refused(world: World, tmp_path: Path) -> None:
    run_toy(toy(tmp_path, settings={"checkpoint": {"every_steps": 3}, "schedule": {"steps": 4}}))
    with pytest.raises(CheckpointError, match=r"precision=bf16, the checkpoint has fp32"):
        run_toy(toy(tmp_path, settings={"engine": {"precision": "bf16"}}))
    with pytest.raises(CheckpointError, match=r"2 samples x 1 processes x 1 micro-batches = 2 .*checkpoint has 4"):
        run_toy(toy(tmp_path, source={"micro_batch_size": 2}))
    with pytest.raises(ValueError, match="seed=5, the checkpoint has 0"):
        run_toy(toy(tmp_path, source={"seed": 5}))


def test_a_run_falls_back_to_the_checkpoint_before(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_toy(toy(tmp_path))
    whole = losses(tmp_path)
    newest = list_checkpoints(tmp_path)[0]
    spoil(newest / "rank_0000.pt")
    with caplog.at_level(logging.WARNING):
        summary = run_toy(toy(tmp_path))
    assert "is damaged" in caplog.text
    assert summary.step == 8
    assert losses(tmp_path) == whole
    assert damage(newest) is None  # written anew over the damaged one


def test_a_disk_that_cannot_be_written_is_named(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 2, world)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.checkpoint.save_file", full)
    with pytest.raises(CheckpointError, match=r"step_00000004 failed: .*No space left.*free disk space"):
        save(tmp_path, 4, world)
    assert newest_intact(tmp_path) == tmp_path / "checkpoints" / "step_00000002"


def test_lines_beyond_the_checkpoint_are_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s}) for s in range(1, 6)]
    path.write_text("\n".join([*lines, "[" * 9999, "[1]", '{"step": 6, "tr']))
    drop_lines_after(path, 3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert caplog.text.count("cut short or damaged") == 3
