"""`tandem export` in the layouts of other projects: file and text, or neither."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.errors import CheckpointError
from launchers.export import main
from launchers.exporting.layouts import left_behind, random_inputs, text_beside, write_layout
from launchers.exporting.scale import scaled
from launchers.options.export import SUFFIXES
from models.detection.point_rcnn import PointRcnnConfig
from models.detection.second import SecondConfig
from models.layouts.intensity import with_intensity_times
from models.layouts.known import LAYOUTS
from models.layouts.openpcdet import OpenPcdet
from models.layouts.result import result
from models.lidar.pointnet2 import PointNet2Config
from models.methods.base import Objective
from tests.helpers.run_folder import write_toy_run
from tests.helpers.weight_layouts import fed, small_pillars, small_voxelnet, stirred

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
    proven = write_layout(out, LAYOUTS[name], LAYOUTS[name].network(detector), fed(), {"run": "r"})
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


@pytest.mark.parametrize("name", ["voxelnet", "pillars", "pointnet2", "detector"])
def test_a_factor_of_intensity_goes_into_the_first_layers(name: str) -> None:
    networks = {
        "voxelnet": lambda: small_voxelnet("second_tiny").build(),
        "pillars": lambda: small_pillars("pillars_tiny").build(),
        "pointnet2": lambda: PointNet2Config().build(),
        "detector": lambda: SecondConfig(backbone=small_voxelnet("second_tiny")).build(),
    }
    network = stirred(networks[name]())
    other, input_there = scaled(network, fed(), 255.0)
    rows = slice(0, 100)
    coords, features, num_samples = random_inputs(network, fed())
    there = random_inputs(other, input_there)[1]
    assert torch.equal(there[:, 3], 255 * features[:, 3])
    assert torch.equal(there[:, :3], features[:, :3])
    expected = result(network, (coords[rows], features[rows], num_samples))
    found = result(other, (coords[rows], there[rows], num_samples))
    assert (expected - found).abs().max() < 1e-5 * expected.abs().max()
    unscaled = result(other, (coords[rows], features[rows], num_samples))
    assert (expected - unscaled).abs().max() > 1e-4 * expected.abs().max()
    assert "Intensity runs from 0 to 255" in LAYOUTS["openpcdet"].instructions(other, input_there)


@pytest.mark.parametrize("name", ["voxelnet", "pillars", "pointnet2"])
def test_a_factor_of_intensity_is_undone_by_its_inverse(name: str) -> None:
    networks = {
        "voxelnet": lambda: small_voxelnet("second_tiny").build(),
        "pillars": lambda: small_pillars("pillars_tiny").build(),
        "pointnet2": lambda: PointNet2Config().build(),
    }
    network = networks[name]()
    there = scaled(network, fed(), 256.0)[0].state_dict()
    back = with_intensity_times(there, network, fed(), 256.0)
    assert all(torch.equal(back[key], value) for key, value in network.state_dict().items())
    assert sum(not torch.equal(there[key], value) for key, value in network.state_dict().items()) >= 1
    foreign = {key: torch.zeros(3) for key in there}  # of another network: left for a report
    assert with_intensity_times(foreign, network, fed(), 256.0) == foreign


def test_heads_that_stay_behind_are_named() -> None:
    second = SecondConfig(backbone=small_voxelnet("second_tiny")).build()
    assert left_behind(LAYOUTS["openpcdet"], second) == ""
    assert "only the 3D network: of the heads of a Second," in left_behind(LAYOUTS["mmdet3d"], second)
    with torch.device("meta"):
        point_rcnn = PointRcnnConfig().build()
    said = left_behind(LAYOUTS["openpcdet"], point_rcnn)
    assert said.endswith("of the heads of a PointRcnn, names and order of axes in OpenPCDet 0.6 are not known here")


def test_a_factor_without_a_known_place_is_refused() -> None:
    with pytest.raises(ValueError, match="of a Linear it is not known which weights see intensity"):
        scaled(torch.nn.Linear(4, 2), fed(), 255.0)


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
