"""`tandem export`: files that give identical features, in our layout and in SLidR's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from common.run_files import WEIGHTS_FILE
from engine.checkpoint import load_weights
from engine.errors import CheckpointError
from launchers import export
from launchers.export import main
from launchers.exporting import formats
from launchers.exporting.formats import FORMATS
from launchers.exporting.proof import check, random_voxels
from launchers.options.export import SUFFIXES
from models import weights
from models.lidar.inputs import SLIDR_INPUT, PointInput
from models.lidar.minkowski import from_minkowski, minkowski_key, to_minkowski
from models.lidar.res16unet import Res16UNet, Res16UNetConfig
from models.methods.base import Objective
from models.weights import load_backbone, load_slidr_backbone
from tests.helpers.run_folder import STEP, write_toy_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Objective]:
    folder = tmp_path_factory.mktemp("runs") / 'it\'s "a" run $(x)'
    return folder, write_toy_run(folder, "shards that are elsewhere")


def features(backbone: torch.nn.Module) -> torch.Tensor:
    coords, values, _ = random_voxels(1)
    with torch.no_grad():
        out: torch.Tensor = backbone.eval()(coords, values, 2)
    return out


def test_an_exported_backbone_gives_the_runs_features(
    run: tuple[Path, Objective], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder" / "backbone's.safetensors"
    assert main([str(run[0]), str(out)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"matched \(100% of the network\), 0 missing, 0 mismatched, 0 unused", text)
    assert "differ by at most 0" in text
    assert [path.name for path in out.parent.iterdir()] == [out.name]

    with safe_open(str(out), framework="pt") as file:
        metadata = file.metadata()
        assert not [key for key in file.keys() if key.startswith(("teacher", "point_head", "pixel_head"))]  # noqa: SIM118
    config = Res16UNetConfig(**json.loads(metadata["backbone"]))
    assert config.preset == "res16unet_tiny"
    assert metadata["step"] == str(STEP)
    assert metadata["run"] == run[0].name
    assert json.loads(metadata["voxel"])["kind"] == "cartesian"
    assert PointInput.from_text(metadata["input"]) == PointInput()
    assert (metadata["teacher"], metadata["leak"]) == ("efficientnet_lite0 (random)", "none")
    torch.manual_seed(99)
    fresh = config.build()
    assert not torch.equal(features(fresh), features(run[1].backbone))
    load_backbone(out, fresh, min_match=1.0)
    assert torch.equal(features(fresh), features(run[1].backbone))


def test_slidr_layout_round_trip(
    run: tuple[Path, Objective], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.pt"
    checkpoint = next((run[0] / "checkpoints").iterdir())
    assert main([str(checkpoint), str(out), "--format", "slidr"]) == 0
    content = torch.load(out, weights_only=True)
    points = content["model_points"]
    head = load_weights(checkpoint / WEIGHTS_FILE, prefix="point_head.linear.")
    assert torch.equal(points["final.kernel"], head["weight"].T)
    assert torch.equal(points["final.bias"], head["bias"][None])
    fresh = Res16UNetConfig(preset="res16unet_tiny", backend="torch").build()
    without_place = from_minkowski(points, fresh.state_dict())[1]
    assert without_place == ("final.kernel", "final.bias")
    assert PointInput.from_text(content["config"]["input"]) == SLIDR_INPUT
    assert "input: intensity from 0 to 255, of the first point of a voxel" in capsys.readouterr().out
    load_slidr_backbone(out, fresh, min_match=1.0)
    torch.testing.assert_close(features(fresh), features(run[1].backbone), rtol=1e-5, atol=1e-5)

    assert main([str(checkpoint), str(out), "--format", "slidr", "--intensity-scale", "1", "--force"]) == 0
    assert "differ by at most 0\n" in capsys.readouterr().out
    load_slidr_backbone(out, fresh, min_match=1.0)
    assert torch.equal(features(fresh), features(run[1].backbone))


def published_names() -> dict[str, tuple[int, ...]]:
    """Names and shapes of SLidR's Res16UNet34C, written down from its architecture."""
    planes, layers = (32, 64, 128, 256, 256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2)
    shapes: dict[str, tuple[int, ...]] = {"conv0p1s1.kernel": (27, 1, 32), "bn0.bn.weight": (32,)}
    width = 32
    skips = [32]
    for stage in range(4):
        shapes[f"conv{stage + 1}p{2**stage}s2.kernel"] = (8, width, width)
        shapes[f"bn{stage + 1}.bn.weight"] = (width,)
        for block in range(layers[stage]):
            shapes |= published_block(f"block{stage + 1}.{block}", width, planes[stage])
            width = planes[stage]
        skips.append(width)
    skips.pop()
    for stage in range(4, 8):
        shapes[f"convtr{stage}p{2 ** (8 - stage)}s2.kernel"] = (8, width, planes[stage])
        shapes[f"bntr{stage}.bn.weight"] = (planes[stage],)
        width = planes[stage] + skips.pop()
        for block in range(layers[stage]):
            shapes |= published_block(f"block{stage + 1}.{block}", width, planes[stage])
            width = planes[stage]
    return shapes | {"final.kernel": (96, 64), "final.bias": (1, 64)}


def published_block(name: str, width: int, out: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.conv1.kernel": (27, width, out),
        f"{name}.norm1.bn.weight": (out,),
        f"{name}.conv2.kernel": (27, out, out),
        f"{name}.norm2.bn.weight": (out,),
    }
    if width != out:
        shapes |= {f"{name}.downsample.0.kernel": (width, out), f"{name}.downsample.1.bn.weight": (out,)}
    return shapes


def test_slidr_layout_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        network = Res16UNetConfig().build()
        head = torch.nn.Linear(96, 64)
    state = to_minkowski(network.state_dict(), (head.weight, head.bias))
    expected = published_names()
    for name in [key for key in expected if key.endswith(".bn.weight")]:
        shape = expected[name]
        stem = name.removesuffix("weight")
        expected |= {f"{stem}{part}": shape for part in ("bias", "running_mean", "running_var")}
        expected[f"{stem}num_batches_tracked"] = ()
    assert {name: tuple(value.shape) for name, value in state.items()} == expected
    assert sum(name.endswith(".kernel") for name in state) == 63  # 46 in blocks, 7 shortcuts, 4 down, 4 up, stem, head
    assert sum(name.endswith(".bn.weight") for name in state) == 62


def test_renaming_is_one_to_one_and_refuses_strangers() -> None:
    keys = list(Res16UNetConfig(preset="res16unet_tiny").build().state_dict())
    assert len({minkowski_key(key) for key in keys}) == len(keys)
    for stranger in ("encoder.4.down.weight", "decoder.0.down.weight", "stem.bias", "encoder.0.blocks.0.conv3.weight"):
        with pytest.raises(ValueError, match="no tensor of a Res16UNet"):
            minkowski_key(stranger)
    with pytest.raises(ValueError, match="SLidR's layout has one convolution as stem, this network two"):
        to_minkowski(Res16UNetConfig(preset="minkunet18").build().state_dict())


def test_a_file_that_differs_is_refused(run: tuple[Path, Objective], tmp_path: Path) -> None:
    out = tmp_path / "b.safetensors"
    FORMATS["tandem"].write(out, run[1], {})
    other = Res16UNetConfig(preset="res16unet_tiny", backend="torch").build()
    with pytest.raises(CheckpointError, match="its features differ"):
        check(out, FORMATS["tandem"], other, random_voxels(1))


def test_a_diverged_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_toy_run(tmp_path / "run", "none")
    build = export.build_objective

    def broken(*arguments: object) -> Objective:
        objective = build(*arguments)  # type: ignore[arg-type]
        assert isinstance(objective.backbone, Res16UNet)
        with torch.no_grad():
            objective.backbone.stem.weight[0, 0, 0] = torch.nan
        return objective

    monkeypatch.setattr(export, "build_objective", broken)
    for file_format in ("tandem", "slidr"):
        out = tmp_path / f"out{SUFFIXES[file_format]}"
        with pytest.raises(CheckpointError, match="not finite"):
            main([str(tmp_path / "run"), str(out), "--format", file_format])
        assert not out.exists()


def test_a_file_is_proven_as_the_other_code_reads_it(
    run: tuple[Path, Objective], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Kernels turned both in writing and in reading back: only a reader of its own sees that.
    def turned(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: value.flip(0) if value.ndim == 3 and len(value) == 8 else value for key, value in state.items()}

    written, read = formats.to_minkowski, weights.from_minkowski
    monkeypatch.setattr(formats, "to_minkowski", lambda *a, **k: turned(written(*a, **k)))
    monkeypatch.setattr(weights, "from_minkowski", lambda theirs, *a, **k: read(turned(dict(theirs)), *a, **k))
    out = tmp_path / "model.pt"
    with pytest.raises(CheckpointError, match=r"rebuilt as the other code reads it, its features differ"):
        main([str(run[0]), str(out), "--format", "slidr"])
    assert not out.exists()


def test_a_unet_goes_to_spconv_and_is_refused_where_it_has_no_counterpart(
    run: tuple[Path, Objective], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("spconv")
    out = tmp_path / "unet.pt"
    assert main([str(run[0]), str(out), "--format", "spconv"]) == 0
    assert re.search(
        r"read back: all \d+ tensors; rebuilt from them, features differ by at most", capsys.readouterr().out
    )
    assert "33. SubMConv3d" in (tmp_path / "unet.pt.md").read_text()
    content = torch.load(out, weights_only=True)
    assert content["state_dict"]["stem.weight"].shape == (16, 3, 3, 3, 1)
    for file_format, nearest in (
        ("pointcept", "res16unet18"),
        ("mmdet3d", "minkunet18"),
        ("torchsparse", "minkunet18"),
    ):
        refused = tmp_path / f"refused{SUFFIXES[file_format]}"
        with pytest.raises(CheckpointError, match=f"the nearest preset is {nearest}"):
            main([str(run[0]), str(refused), "--format", file_format])
        assert not refused.exists()


def test_mistakes_are_answered_with_code_2(run: tuple[Path, Objective], tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"precious")
    for arguments in (
        ["x.pth"],
        [str(there)],
        ["x.pt", "--format", "onnx"],
        ["x.safetensors", "--intensity-scale", "255"],
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(run[0]), *arguments])
        assert stop.value.code == 2
    assert there.read_bytes() == b"precious"
    assert main([str(run[0]), str(there), "--force"]) == 0
    with pytest.raises(CheckpointError, match="expected a run's folder"):
        main([str(tmp_path / "nowhere"), str(tmp_path / "y.safetensors")])
