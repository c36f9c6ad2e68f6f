"""`tandem evaluate --weights`: a network from a file gets the numbers that its run gets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import get_args

import pytest
import torch

from engine.downstream.results import LeakLevel, Result, read_results
from launchers.cli import main as tandem
from launchers.evaluation.weight_file import StatedByHand, like_config, read_file
from launchers.options.evaluate import LAYOUTS, LEAKS
from models.layouts import known as layouts
from models.layouts.base import to_theirs
from models.lidar.minkowski import to_minkowski
from models.lidar.pillars import PillarsConfig
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.voxelnet import VoxelNetConfig
from models.weights import IMAGE_FORMATS
from tests.helpers.image_run import write_image_run
from tests.helpers.run_folder import run_config, write_toy_run
from tests.helpers.samples import write_toy_set
from tests.helpers.weight_layouts import GRID_MAX, GRID_MIN, fed, stirred

POINTS = (
    "protocols=[linear_probe,knn,finetune]",
    "linear_probe={steps: 5, lrs: [0.03]}",
    "knn.bank_size=100",
    "finetune={steps: 2, lrs: [0.001], seeds: [0]}",
    "fraction={kind: random, count: 1}",
    "calibration_sweeps=0",  # BatchNorm estimated again would hide another scale of intensity
    "voxels_per_sweep=50",
    "device=cpu",
)
IMAGES = (
    "protocols=[image_linear_probe]",
    "image_linear_probe={steps: 5, lrs: [0.1], pixels_per_image: 50}",
    "images.size=[48,96]",
    "calibration_sweeps=1",
    "device=cpu",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set, a run of each kind with its results, and the files that its network is exported to."""
    root = tmp_path_factory.mktemp("here")
    shards = write_toy_set(root / "set", num_logs=4, frames_per_log=1, image_labels=True)
    (root / "protocols.yaml").write_text("")
    write_toy_run(root / "points", shards)
    write_image_run(root / "images", shards)
    for run, settings in (("points", POINTS), ("images", IMAGES)):
        assert tandem(["evaluate", str(root / run), str(root / "protocols.yaml"), *settings]) == 0
    for name, run, layout in (
        ("tandem.safetensors", "points", "tandem"),
        ("slidr.pt", "points", "slidr"),
        ("torchvision.pth", "images", "torchvision"),
    ):
        assert tandem(["export", str(root / run), str(root / name), "--format", layout]) == 0
    return root


def evaluate(folder: Path, file: Path, layout: str, out: Path, *more: str) -> int:
    shards = f"data.shards={folder / 'set'}"
    arguments = ["--weights", str(file), "--layout", layout, "--out", str(out), str(folder / "protocols.yaml"), shards]
    return tandem(["evaluate", *arguments, *more])


def numbers(results: list[Result], *, pretrained: bool) -> list[tuple[str, str, tuple[float, ...]]]:
    return [(r.protocol, r.fingerprint, r.values) for r in results if r.pretrained == pretrained]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "run", "leak"),
    [
        ("tandem.safetensors", "points", "none"),
        ("slidr.pt", "points", "none"),
        ("torchvision.pth", "images", "supervised-teacher"),  # as far as the layout says
    ],
    ids=["tandem", "slidr", "torchvision"],
)
def test_a_file_gives_the_numbers_of_its_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, run: str, leak: str
) -> None:
    file, settings = folder / name, POINTS if run == "points" else IMAGES
    assert evaluate(folder, file, file.stem, tmp_path, *settings) == 0
    ours, theirs = read_results(tmp_path / "results.json"), read_results(folder / run / "results.json")
    assert numbers(ours, pretrained=False) == numbers(theirs, pretrained=False)
    for mine, its in zip(numbers(ours, pretrained=True), numbers(theirs, pretrained=True), strict=True):
        assert mine[:2] == its[:2]
        # SLidR's layout has intensity from 0 to 255: the first layer is equal but for rounding.
        assert mine[2] == pytest.approx(its[2], abs=1.0 if name == "slidr.pt" else 0)
    first = ours[0]
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert (first.init, first.checkpoint, first.leak) == (name, (f"{name} {sha256[:12]} {file.stem}",), leak)
    if run == "points":
        assert first.teacher == "efficientnet_lite0 (random)"
        assert first.pretraining == f"a file of layout {file.stem}, sha256 {sha256[:12]}, run points, step 12"

    # One block a protocol in the report: the file beside the run and random initialisation.
    capsys.readouterr()
    assert (
        tandem(["report", str(tmp_path), str(folder / run), "--out", str(tmp_path / "r.html"), "--pictures", "0"]) == 0
    )
    table = (tmp_path / "r.md").read_text()
    assert table.count("| random ") == len({r.protocol for r in ours})
    assert table.count(f"| {name}") == len({r.protocol for r in ours})


def test_a_published_file_states_nothing_and_is_recognised(folder: Path, tmp_path: Path) -> None:
    """Without a preset the one that fits is taken; its grid is SLidR's, its intensities are those of nuScenes."""
    torch.manual_seed(0)
    backbone = Res16UNetConfig(preset="res16unet_tiny", backend="torch").build()
    head = (torch.randn(64, 48), torch.zeros(64))
    torch.save({"model_points": to_minkowski(backbone.state_dict(), head), "epoch": 50}, tmp_path / "model.pt")
    quick = (*POINTS, "protocols=[knn]", "random=false")
    assert evaluate(folder, tmp_path / "model.pt", "slidr", tmp_path / "as_is", *quick) == 0
    (as_is,) = read_results(tmp_path / "as_is" / "results.json")
    sha256 = hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()[:12]
    assert (as_is.leak, as_is.pretraining) == ("unknown", f"a file of layout slidr, sha256 {sha256}")

    # Another scale is another network, also where results of this file are already there.
    assert evaluate(folder, tmp_path / "model.pt", "slidr", tmp_path / "as_is", *quick, "--intensity-scale", "1") == 0
    _, other = read_results(tmp_path / "as_is" / "results.json")
    assert other.pretraining.startswith("a file of layout slidr, intensity to 1, sha256 ")

    options = ("--leak", "ssl-teacher", "--intensity-scale", "1", "--intensity-offset", "1")
    assert evaluate(folder, tmp_path / "model.pt", "slidr", tmp_path / "kitti", *quick, *options) == 0
    (kitti,) = read_results(tmp_path / "kitti" / "results.json")
    assert kitti.leak == "ssl-teacher"
    assert kitti.fingerprint != as_is.fingerprint  # 1 + intensity is another input, and another random network


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slidr, images = folder / "slidr.pt", folder / "torchvision.pth"

    def refused(file: Path, layout: str, *more: str) -> str:
        capsys.readouterr()
        assert evaluate(folder, file, layout, tmp_path, *more) == 2
        return capsys.readouterr().err

    text = refused(slidr, "slidr", *POINTS, "--backbone", "res16unet18")
    assert (
        "--backbone res16unet18: the file has other tensors; nearest is --backbone res16unet_tiny (100% match)" in text
    )
    assert "encoder.0.blocks.1.conv1.weight" in text
    assert "got 'minkunet18', expected one of res16unet34c" in refused(
        slidr, "slidr", *POINTS, "--backbone", "minkunet18"
    )
    assert "has no conv0p1s1.kernel" in refused(images, "slidr", *POINTS)
    torch.save({"a.weight": torch.ones(3)}, tmp_path / "foreign.pt")
    assert "has another layout: `tandem weights check FILE`" in refused(
        tmp_path / "foreign.pt", "torchvision", *IMAGES, "--backbone", "resnet10_tiny"
    )
    assert "none.pt is not a file" in refused(tmp_path / "none.pt", "tandem", *POINTS)
    text = refused(slidr, "tandem", *POINTS)
    assert "cannot be read as safetensors" in text
    assert "with --format slidr or torchvision writes files of those layouts" in text
    assert "network.bn1.running_mean (network (64,), file (16,))" in refused(
        images, "torchvision", *IMAGES, "--backbone", "resnet50"
    )
    assert "depth cannot measure" in refused(slidr, "slidr", "protocols=[knn,depth]")
    assert "whose files do not say it; got layout tandem" in refused(
        folder / "tandem.safetensors", "tandem", *POINTS, "--intensity-scale", "255"
    )
    broken = torch.load(slidr, weights_only=True)
    broken["model_points"]["bn0.bn.weight"][0] = torch.nan
    torch.save(broken, tmp_path / "broken.pt")
    assert "broken.pt: not finite: stem_norm.weight" in refused(tmp_path / "broken.pt", "slidr", *POINTS)
    assert "data.shards: got null" in refused(slidr, "slidr", *POINTS, "data.shards=null")
    file = ["--weights", str(slidr), "--layout"]
    for words in (["--layout", "slidr"], file[:2], [*file, "onnx"], [*file, "slidr", "--intensity-scale", "0"]):
        with pytest.raises(SystemExit) as stop:
            tandem(["evaluate", *words, "--out", str(tmp_path), str(folder / "protocols.yaml")])
        assert stop.value.code == 2
    assert "--intensity-scale: got '0', expected a finite number above 0" in capsys.readouterr().err
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("tandem.safetensors", "--layout tandem"), ("slidr.pt", "--layout slidr"), ("torchvision.pth", "torchvision:")],
)
def test_weights_check_says_how_an_export_is_used(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str, expected: str
) -> None:
    assert tandem(["weights", "check", str(folder / name)]) == 0
    assert expected in capsys.readouterr().out


def test_the_words_of_options_are_those_of_the_code() -> None:
    """They are written out, because the command line must not wait for torch."""
    assert get_args(LeakLevel) == LEAKS
    assert {*LAYOUTS} == {"tandem", *layouts.LAYOUTS, *IMAGE_FORMATS}


@pytest.mark.slow
def test_a_network_of_another_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its file says nothing of its input: a config does, and the scale of intensity by hand."""
    network = stirred(VoxelNetConfig(preset="second_tiny", in_channels=4, grid_min=GRID_MIN, grid_max=GRID_MAX).build())
    file = tmp_path / "theirs.pth"
    torch.save({"model_state": to_theirs(layouts.LAYOUTS["openpcdet"], network)}, file)
    with pytest.raises(ValueError, match=r"do not say what their network is fed; expected --like CONFIG"):
        read_file(file, "openpcdet")
    backbone = (
        f"{{name: voxelnet, preset: second_tiny, in_channels: 4, grid_min: {[*GRID_MIN]}, grid_max: {[*GRID_MAX]}}}"
    )
    voxels = json.dumps(dataclasses.asdict(fed().voxels))
    (tmp_path / "like.yaml").write_text(
        f"data: {{shards: '???', voxel: {voxels}}}\nmethod: {{name: pointcontrast, backbone: {backbone}}}\n"
    )
    like = like_config(str(tmp_path / "like.yaml"))
    read = read_file(file, "openpcdet", StatedByHand(like=like))
    assert (read.preset, read.voxels["size"]) == ("second_tiny", [*fed().voxels.size])
    ours = network.state_dict()
    assert all(torch.equal(read.state(network)[key], value) for key, value in ours.items())
    first = "encoder.layers.0.conv.weight"
    scaled = read_file(file, "openpcdet", StatedByHand(like=like, intensity_scale=255.0)).state(network)
    assert torch.equal(scaled[first][:, 3], ours[first][:, 3] * 255)
    assert torch.equal(scaled[first][:, :3], ours[first][:, :3])

    assert tandem(["weights", "check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "a 3D network in the layout of OpenPCDet 0.6:\n  voxelnet, preset second_tiny, 4 features of a voxel" in said
    assert f"tandem finetune CONFIG init=openpcdet:{file}" in said
    assert "what it is fed is not stated; --like CONFIG says it" in said


@pytest.mark.slow
def test_a_foreign_file_gets_the_numbers_of_its_run(folder: Path, tmp_path: Path) -> None:
    """Pillars as OpenPCDet has them, fed 0 to 255, with nothing of ours in the file: from the run and back."""
    shards = str(folder / "set")
    plain = run_config(tmp_path / "run", shards)
    pillars = PillarsConfig(
        preset="pillars_tiny", pillar_size_m=0.5, range_min_m=(-16.0, -16.0, -4.0), range_max_m=(16.0, 16.0, 4.0)
    )
    voxels = dataclasses.replace(
        plain.data.voxel,
        features="xyz_intensity",
        size=(0.5, 0.5, 0.5),
        range_min=pillars.range_min_m,
        range_max=pillars.range_max_m,
    )
    config = dataclasses.replace(
        plain,
        data=dataclasses.replace(plain.data, voxel=voxels),
        method=dataclasses.replace(plain.method, backbone=pillars),
    )
    write_toy_run(tmp_path / "run", shards, config=config)
    protocols = str(folder / "protocols.yaml")
    assert tandem(["evaluate", str(tmp_path / "run"), protocols, *POINTS]) == 0
    file = tmp_path / "theirs.pth"
    scale = ("--intensity-scale", "255")
    assert tandem(["export", str(tmp_path / "run"), str(file), "--format", "openpcdet", *scale]) == 0
    torch.save({"model_state": torch.load(file, weights_only=True)["model_state"]}, file)
    like = ("--like", str(tmp_path / "run"))
    for out, more in (("out", scale), ("unscaled", ())):
        assert evaluate(folder, file, "openpcdet", tmp_path / out, *POINTS, *like, *more) == 0
    ours, theirs, unscaled = (
        numbers(read_results(tmp_path / name / "results.json"), pretrained=True) for name in ("run", "out", "unscaled")
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one[:2] == other[:2]
        assert other[2] == pytest.approx(one[2], abs=1.0)
    assert unscaled != theirs
