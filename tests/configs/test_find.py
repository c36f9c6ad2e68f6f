"""Config files by path and by name, from anywhere; a file of another kind is told apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from configs.find import KINDS, PACKAGED, config_names, find_config, kind_of
from configs.load import ConfigError, load
from configs.schema import PRETRAIN_CHOICES, EvaluateConfig, PretrainConfig, SlurmConfig, SweepConfig
from launchers.prepare import PrepareRunConfig

CLASSES = (PretrainConfig, EvaluateConfig, PrepareRunConfig, SlurmConfig, SweepConfig)
SHIPPED = [(name, entry.folder, config) for name, entry in KINDS.items() for config in config_names(entry.folder)]


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = PACKAGED / "pretrain" / "slidr_street.yaml"
    for text in ("slidr_street", "slidr_street.yaml", "configs/pretrain/slidr_street.yaml", str(shipped)):
        assert find_config(text, "pretrain") == shipped
    Path("slidr_street").write_text("method: {}\n")
    assert find_config("slidr_street", "pretrain") == Path("slidr_street")
    os.remove("slidr_street")
    Path("slidr_street").mkdir()  # a folder of that name, perhaps a run's, does not hide the file
    assert find_config("slidr_street", "pretrain") == shipped


@pytest.mark.parametrize(
    ("text", "folder", "words"),
    [
        ("slidr_stret", "pretrain", "did you mean 'slidr_street'?"),
        ("configs/pretrain/slidr_stret.yaml", "pretrain", "did you mean 'slidr_street'?"),
        ("semantic_kitti", "downstream", "did you mean 'semantickitti'?"),
        ("runs/nothing", "finetune", "runs/nothing: no such config file; there is no folder runs"),
        ("zzz", "cluster", "expected a path, or one of cpu, example"),
        ("nowhere/deep/zzz.yaml", "pretrain", "nowhere/deep/zzz.yaml: no such config file; there is no folder nowhere"),
        ("shelf/dep/zzz.yaml", "pretrain", "there is no folder shelf/dep; did you mean 'shelf/deep'?"),
        ("shelf/deep/zzz.yaml", "pretrain", "shelf/deep has no YAML file"),
        ("shelf/qwertyuiopqwertyuiopqwerty", "pretrain", "shelf has 0_.yaml, 1_.yaml, 2_.yaml, 3_.yaml, 4_.yaml, ..."),
    ],
)
def test_what_is_not_there_names_the_nearest(
    text: str, folder: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shelf", "deep").mkdir(parents=True)
    for number in range(6):
        Path("shelf", f"{number}_.yaml").touch()
    with pytest.raises(FileNotFoundError, match="no such config file") as caught:
        find_config(text, folder)
    assert str(caught.value).startswith(f"{text}: ")
    assert words in str(caught.value)


def test_a_folder_names_the_config_in_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("run_dir: x\n")
    with pytest.raises(ConfigError, match=r"is a folder, expected a YAML file; did you mean .*run/config\.yaml"):
        load(PretrainConfig, run, choices=PRETRAIN_CHOICES)


def test_marks_are_settings_of_their_kind_alone() -> None:
    for kind in CLASSES:
        entry = KINDS[kind.__name__]
        assert entry.marks <= set(kind.__dataclass_fields__)
        for other in CLASSES:
            assert other is kind or not entry.marks & set(other.__dataclass_fields__) - {"evaluate"}, other


@pytest.mark.parametrize("kind", CLASSES)
def test_files_of_other_kinds_are_named(kind: type) -> None:
    for name, folder, config in SHIPPED:
        path = PACKAGED / folder / f"{config}.yaml"
        if name != kind.__name__:
            with pytest.raises(ConfigError, match=f"is the config of {KINDS[name].title} .* goes to {KINDS[name].use}"):
                load(kind, path)


def test_kind_of() -> None:
    assert kind_of(["data"]) is None
    assert kind_of(["data", "fraction", "finetune"]) == "EvaluateConfig"
    assert kind_of(["method", "finetune"]) is None  # a draw: the error about the unknown name says more
