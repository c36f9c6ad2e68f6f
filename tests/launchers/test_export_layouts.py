"""`tandem export` in the layouts of other projects: file and text, or neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.errors import CheckpointError
from launchers.export import main
from launchers.exporting.layouts import text_beside, write_layout
from launchers.options.export import SUFFIXES
from models.detection.second import SecondConfig
from models.layouts.known import LAYOUTS
from models.layouts.openpcdet import OpenPcdet
from models.methods.base import Objective
from tests.helpers.run_folder import write_toy_run
from tests.helpers.weight_layouts import fed, small_voxelnet, stirred

pytest.importorskip("spconv")


@pytest.fixture(scope="module")
def detector() -> Objective:
    torch.manual_seed(1)
    return stirred(SecondConfig(backbone=small_voxelnet("second_tiny")).build())


def test_each_layout_has_its_option() -> None:
    assert set(LAYOUTS) <= set(SUFFIXES)


@pytest.mark.parametrize(("name", "head"), [("openpcdet", True), ("mmdet3d", False)])
def test_a_detectors_file_is_written_with_a_text_beside(
    name: str, head: bool, detector: Objective, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "x.pth"
    proven = write_layout(out, LAYOUTS[name], detector, fed(), {"run": "r"})
    assert proven.difference < 2e-6
    content = torch.load(out, weights_only=True)
    state = content["model_state" if name == "openpcdet" else "state_dict"]
    assert len(state) == proven.tensors
    assert any(key.startswith("dense_head.") for key in state) is head
    assert f"{proven.tensors} tensors" in text_beside(out).read_text()
    assert sorted(path.name for path in out.parent.iterdir()) == ["x.pth", "x.pth.md"]


def test_a_file_that_fails_its_proof_is_not_left(
    detector: Objective, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = OpenPcdet.features

    def wrong(*arguments: object) -> torch.Tensor:
        features = right(*arguments).clone()  # type: ignore[arg-type]
        features[0, 0] += 1e-3 * features.abs().max()
        return features

    monkeypatch.setattr(OpenPcdet, "features", wrong)
    with pytest.raises(CheckpointError, match=r"features differ by 0\.00\d+ of the largest .* the file was removed"):
        write_layout(tmp_path / "x.pth", LAYOUTS["openpcdet"], detector, fed(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_network_is_not_written(tmp_path: Path) -> None:
    network = SecondConfig(backbone=small_voxelnet("second_tiny")).build()
    with torch.no_grad():
        next(network.backbone.parameters()).fill_(torch.inf)
    with pytest.raises(ValueError, match=r"not finite: backbone_3d\.conv_input\.0\.weight"):
        write_layout(tmp_path / "x.pth", LAYOUTS["openpcdet"], network, fed(), {})
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_there_is_kept_and_a_network_without_counterpart_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toy_run(tmp_path / "run", "none")
    (tmp_path / "x.pth.md").write_text("precious")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "run"), str(tmp_path / "x.pth"), "--format", "openpcdet"])
    assert "x.pth.md exists" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="could not be exported as openpcdet: OpenPCDet has no counterpart"):
        main([str(tmp_path / "run"), str(tmp_path / "y.pth"), "--format", "openpcdet"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.pth.md"]
