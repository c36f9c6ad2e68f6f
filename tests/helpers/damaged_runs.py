"""A folder of two runs, and damage to the small files of one of them, for the fuzzer and for tests of single faults."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml

from configs.dump import dump
from configs.schema import PRETRAIN_CHOICES
from engine import metric_names as names
from engine.checkpoint import save_checkpoint
from engine.distributed import World
from engine.downstream.results import write_results
from launchers.evaluation.selection import Selection
from launchers.runs.attempts import begin
from launchers.runs.job_record import Jobs, write_jobs
from tests.engine.downstream.test_results import make
from tests.helpers.mutations import NASTY_JSON, Rng, json_value, mutate
from tests.helpers.run_folder import run_config

STEP = 12
DAMAGED, WHOLE = "damaged", "whole"
"""Names of the two runs."""
TEXTS = ("config.yaml", "attempts.jsonl", "metrics.jsonl")


def write_runs(root: Path) -> None:
    """Both runs with all small files that verbs read, weights of one number, and shared baselines."""
    for seed, name in enumerate((DAMAGED, WHOLE)):
        _write_run(root / name, seed)
    random = make(init="random", pretrained=False, teacher="", leak="none", checkpoint=())
    write_results(root / "baselines" / "street-abc" / "results.json", [random])


def _write_run(folder: Path, seed: int) -> None:
    config = dataclasses.replace(run_config(folder, "shards"), seed=seed)
    text = dump(config, choices=PRETRAIN_CHOICES)
    for place in (folder, folder / "submission"):
        place.mkdir(parents=True)
        (place / "config.yaml").write_text(text)
    record = begin(folder, 1, job="12_0", nodes="n[1-2]")
    record.resumed(0)
    record.end("failed", step=STEP, reason="DivergenceError: loss is not finite")
    same = dict.fromkeys((names.LOSS, names.SAMPLES_PER_S, names.DATA_WAIT_SHARE, names.STEP_S), 0.5)
    same |= {names.WATCH + names.ACCURACY: 0.5}
    lines = [{"step": s, "time": 10.0 * s, names.EPOCH: s / 9, **same} for s in range(1, STEP + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_jobs(
        folder, Jobs(pretrain="12_0", evaluate={"street": "13_0"}, baselines={"street-abc": "14_0"}, logs="logs")
    )
    environment = {"date": "2026-01-01", "command": ["tandem", "pretrain"], "git": {"commit": "a" * 40, "dirty": True}}
    environment |= {
        "python": "3.11",
        "processor": "x",
        "cores": 2,
        "memory_gib": 1.5,
        "gpus": [],
        "packages": {"a": "1"},
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    result = make(checkpoint=(f"{folder.name}/step_{STEP:08d} {'ab' * 6}",), setting="s", pretrain_seeds=(seed,))
    write_results(folder / "results.json", [result])
    write_results(folder / "evaluation" / "street" / "results.json", [dataclasses.replace(result, labels="1 frame")])
    (folder / "evaluation" / "other").mkdir()
    (folder / "evaluation" / "other" / "error.txt").write_text("ShardError: no such set\n\ntraceback\n")
    (folder / "selection").mkdir()
    chosen = Selection(step=STEP, last="x", by="knn", split="val", scores={STEP: 30.0}, settings="s", date="2026")
    (folder / "selection" / "selection.json").write_text(json.dumps(dataclasses.asdict(chosen)))
    save_checkpoint(
        folder,
        STEP,
        weights={"backbone.w": torch.ones(1)},
        rank_state={"rng": torch.zeros(1)},
        state={"num_steps": 50, "skipped": 1, "versions": {"torch": "2"}},
        config=yaml.safe_load(text),
        world=World(rank=0, world_size=1, local_rank=0, device=torch.device("cpu")),
        keep=3,
    )


def small_files(root: Path) -> list[Path]:
    """What may be struck: all files of the damaged run but its weights, and the baselines."""
    found = [path for folder in (DAMAGED, "baselines") for path in (root / folder).rglob("*")]
    endings = (".json", ".jsonl", ".yaml", ".txt")
    return sorted(path for path in found if path.is_file() and path.suffix in endings)


def strike(rng: Rng, root: Path, canary: str) -> tuple[str, Callable[[], None]]:
    """Damage one file; returns what was done and how it is undone."""
    files = small_files(root)
    path = files[int(rng.integers(len(files)))]
    data = path.read_bytes()
    label, change = _change(rng, path, data, canary)
    change()

    def undo() -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    return f"{path.relative_to(root)}: {label}", undo


def _change(rng: Rng, path: Path, data: bytes, canary: str) -> tuple[str, Callable[[], object]]:
    choice = rng.random()
    if choice < 0.08:
        kinds = {
            "a folder": lambda: (path.unlink(), path.mkdir()),
            "a pipe": lambda: (path.unlink(), os.mkfifo(path)),
            "a dangling link": lambda: (path.unlink(), path.symlink_to("nowhere")),
            "a link to itself": lambda: (path.unlink(), path.symlink_to(path.name)),
            "gone": path.unlink,
            "a link to a folder": lambda: (path.unlink(), path.symlink_to("..")),
        }
        label = sorted(kinds)[int(rng.integers(len(kinds)))]
        return label, kinds[label]
    if path.suffix == ".jsonl" and choice < 0.6:
        lines = data.splitlines(keepends=True)
        at = int(rng.integers(len(lines)))
        label, lines[at] = (json_value if rng.random() < 0.7 else _other_line)(rng, lines[at], canary)
        return f"line {at + 1}: {label}", lambda: path.write_bytes(
            b"".join([*lines[: at + 1], b"\n", *lines[at + 1 :]])
        )
    if path.suffix == ".yaml" and choice < 0.6:
        label, changed = _yaml_value(rng, data)
        return label, lambda: path.write_bytes(changed)
    label, changed = mutate(rng, path.name, data, canary)
    return label, lambda: path.write_bytes(changed)


def _other_line(rng: Rng, line: bytes, canary: str) -> tuple[str, bytes]:
    value = NASTY_JSON[int(rng.integers(len(NASTY_JSON)))]()
    return "another value", json.dumps(value).encode("utf-8", errors="surrogatepass")


_YAML_VALUES = (
    "[]",
    "{}",
    "null",
    "2024-01-01",
    "1e999",
    ".nan",
    "!!binary aGk=",
    "!!set {a}",
    "9" * 5000,
    "*a",
    "&a x",
)
_YAML_VALUES += (
    "*a",
    "&a x",
    "!!python/object/apply:os.system [id]",
    "{1: 2}",
    "[" * 2000,
    "'\\e[31m'",
    '"\\e[31m"',
    "-1",
    "yes",
)


def _yaml_value(rng: Rng, data: bytes) -> tuple[str, bytes]:
    """The value of one line replaced."""
    lines = data.split(b"\n")
    places = [number for number, line in enumerate(lines) if b":" in line]
    at = places[int(rng.integers(len(places)))]
    value = _YAML_VALUES[int(rng.integers(len(_YAML_VALUES)))]
    lines[at] = lines[at].split(b":")[0] + b": " + value.encode()
    return f"{lines[at][:60]!r}", b"\n".join(lines)


def rng_of(seed: int, number: int) -> Rng:
    """What decides a mutation: a function of seed and number alone."""
    return np.random.default_rng([seed, number])
