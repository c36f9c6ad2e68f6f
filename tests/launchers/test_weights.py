"""`tandem weights`: the list, and what it says of a file."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launchers.cli import main as tandem
from models.image.published import PUBLISHED
from models.image.resnet import ResNet
from tests.helpers.pretrain_run import CONFIGS


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["weights", "list"]) == 0
    said = capsys.readouterr().out
    assert "moco_v2_800ep_pretrain.pth.tar" in said
    assert "md5 a04e12f8" in said


def test_check_says_how_a_file_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.pth"
    torch.save(ResNet("resnet10_tiny").state_dict(), file)
    assert tandem(["weights", "check", str(file)]) == 0
    assert f"method.teacher.name=resnet10_tiny method.teacher.weights=torchvision:{file}" in capsys.readouterr().out


def test_check_compares_with_the_published_checksum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "moco_v2_800ep_pretrain.pth.tar"
    state = {f"module.encoder_q.{key}": value for key, value in ResNet("resnet10_tiny").state_dict().items()}
    torch.save({"state_dict": state}, file)
    assert tandem(["weights", "check", str(file)]) == 1
    said = capsys.readouterr().out
    assert "has the name of a published file and is not it: md5 begins with" in said
    assert "published: a04e12f8" in said
    assert "CC BY-NC" in said

    file = file.rename(tmp_path / "renamed.pth")
    digits = hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()[:8]
    moco = next(one for one in PUBLISHED if one.file == "moco_v2_800ep_pretrain.pth.tar")
    for entry, words in (
        (replace(moco, checksum=f"md5 {digits}"), f"the published file: its md5 begins with {digits}"),
        (replace(moco, file="renamed.pth", checksum=""), "the publisher states no checksum"),
    ):
        monkeypatch.setattr("launchers.weights.PUBLISHED", (entry,))
        assert tandem(["weights", "check", str(file)]) == 0
        assert words in capsys.readouterr().out


def test_check_of_what_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    assert tandem(["weights", "check", str(tmp_path / "other.pth")]) == 1
    assert "fills no image network" in capsys.readouterr().out
    state = ResNet("resnet10_tiny").state_dict()
    state["conv1.weight"][0] = float("nan")
    torch.save(state, tmp_path / "broken.pth")
    assert tandem(["weights", "check", str(tmp_path / "broken.pth")]) == 1
    assert "not finite: conv1.weight" in capsys.readouterr().out
    assert tandem(["weights", "check", str(tmp_path / "brokn.pth")]) == 2
    said = capsys.readouterr().err
    assert "no such file; did you mean 'broken.pth'?" in said
    assert "tandem weights check" not in said


def test_a_config_that_asks_for_weights_says_where_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["pretrain", str(CONFIGS / "slidr_kitti.yaml"), "data.shards=here"]) == 2
    said = capsys.readouterr().err
    assert "method.teacher.weights: no value given" in said
    assert "tandem weights list" in said
