"""What a detector starts from: whole sub-networks of a run or a file, and nothing else without a word."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from configs.detection import FinetuneConfig
from configs.load import ConfigError
from configs.runs import dump_run, read_run
from engine.checkpoint import save_checkpoint
from engine.distributed import World
from engine.errors import CheckpointError
from launchers import export
from launchers.evaluation.networks import check_tower, open_source
from launchers.finetuning.init import check_fits, fill
from launchers.finetuning.run import assemble_network
from launchers.finetuning.sources import Start, sha256_of
from launchers.runs.settings import setting_of_tree
from launchers.training.continuing import Continued
from models.detection.base import Detector
from models.image.base import ImageEncoderConfig
from models.image.fpn import ResNetFpnConfig
from models.image.resnet_encoder import ResNetEncoderConfig
from models.layouts.base import to_theirs
from models.layouts.known import LAYOUTS
from models.lidar.res16unet import Res16UNetConfig
from models.weights import export_backbone
from tests.helpers.toy_detector import TwoTowerConfig

ALONE = World(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
GRID: dict[str, Any] = {
    "kind": "cartesian",
    "size": [0.4, 0.4, 0.4],
    "features": "xyz_intensity",
    "reduce": "mean",
    "range_min": [-12.8, -12.8, -4.8],
    "range_max": [12.8, 12.8, 4.8],
}
NETWORK: dict[str, Any] = {
    "name": "voxelnet",
    "preset": "second_tiny",
    "in_channels": 4,
    "grid_min": [-32, -32, -12],
    "grid_max": [32, 32, 12],
}
SECOND: dict[str, Any] = {
    "name": "second",
    "classes": ["car", "pedestrian"],
    "backbone": {**NETWORK, "voxel_size_m": GRID["size"]},
    "head": {"anchor_set": "street"},
}


def write_checkpoint(folder: Path, step: int, weights: Mapping[str, Tensor], resolved: str) -> None:
    folder.mkdir()
    save_checkpoint(
        folder,
        step,
        weights=weights,
        rank_state={},
        state={"fingerprint": {}},
        config=yaml.safe_load(resolved),
        world=ALONE,
        keep=1,
    )


def config(init: str, *overrides: str, **sections: Any) -> FinetuneConfig:
    tree = {"run_dir": "here", "data": {"shards": "none", "voxel": GRID}, "model": SECOND, "init": init, **sections}
    made = read_run(None, overrides, defaults=tree)
    assert isinstance(made, FinetuneConfig)
    return made


def pretrained(folder: Path, *, voxel: dict[str, Any] = GRID, drop: str = "\0", **network: Any) -> Path:
    """A pre-training run of the same 3D network; tensors whose names begin with `drop` are left out."""
    method = {"name": "pointcontrast", "backbone": {**NETWORK, **network}}
    run = read_run(
        None, defaults={"run_dir": str(folder), "data": {"shards": "none", "voxel": voxel}, "method": method}
    )
    torch.manual_seed(7)
    weights = {name: value + 1 for name, value in run.method.build().state_dict().items() if not name.startswith(drop)}
    write_checkpoint(folder, 3, weights, dump_run(run))
    return folder


def filled(settings: FinetuneConfig) -> tuple[Detector, Detector, Start]:
    """The detector before and after, and the record."""
    torch.manual_seed(0)
    fresh = settings.model.build()
    torch.manual_seed(0)
    detector = settings.model.build()
    assert isinstance(detector, Detector)
    assert isinstance(fresh, Detector)
    return fresh, detector, fill(detector, settings)


def equal(one: torch.nn.Module, other: torch.nn.Module, name: str) -> bool:
    ours, theirs = one.get_submodule(name).state_dict(), other.get_submodule(name).state_dict()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_random_is_what_was_built() -> None:
    fresh, detector, start = filled(config("random"))
    assert equal(fresh, detector, "backbone")
    assert (start.identity, start.filled, start.leak) == ("random", (), "none")
    assert start.random == ("backbone", "dense_head")
    assert sha256_of("random") == "random"


def test_the_network_of_a_run_with_the_head_still_random(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "run")
    fresh, detector, start = filled(config(str(folder)))
    assert not equal(fresh, detector, "backbone")
    assert equal(fresh, detector, "dense_head")
    assert start.filled == ("backbone.bev_backbone", "backbone.encoder")
    assert start.random == ("dense_head",)
    assert start.identity.startswith("run/step_00000003 ")
    assert start.sha256 == sha256_of(str(folder)) == sha256_of(str(folder / "checkpoints" / "step_00000003"))
    assert json.loads(start.to_text())["filled"] == ["backbone.bev_backbone", "backbone.encoder"]
    assert sha256_of(str(tmp_path / "gone")) is None


def test_a_part_that_the_source_lacks_entirely_stays_random(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "run", drop="backbone.bev_backbone.")
    fresh, detector, start = filled(config(str(folder)))
    assert not equal(fresh, detector, "backbone.encoder")
    assert equal(fresh, detector, "backbone.bev_backbone")
    assert start.random == ("backbone.bev_backbone", "dense_head")
    assert "random: backbone.bev_backbone, dense_head" in str(start)


@pytest.mark.parametrize(
    ("drop", "message"),
    [("backbone.encoder.layers.0.", "missing: encoder.layers.0"), ("backbone.", "no weight begins with 'backbone.'")],
    ids=["half", "none"],
)
def test_half_a_part_is_refused(tmp_path: Path, drop: str, message: str) -> None:
    folder = pretrained(tmp_path / "run", drop=drop)
    with pytest.raises(ConfigError, match=rf"init={folder}: (.|\n)*{message}"):
        filled(config(str(folder)))


def test_input_of_another_meaning_is_refused(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "run", voxel={**GRID, "reduce": "first"})
    with pytest.raises(ConfigError, match=r"data.voxel.reduce: got mean, expected first: init="):
        filled(config(str(folder)))
    with pytest.raises(ConfigError, match=r"init=.*nowhere: .* does not exist"):
        filled(config(str(tmp_path / "nowhere")))


def test_an_exported_file_and_another_detector(tmp_path: Path) -> None:
    settings = config("random")
    torch.manual_seed(3)
    other = settings.model.build()
    backbone = dataclasses.asdict(settings.model.backbone)  # type: ignore[attr-defined]
    metadata = {
        "backbone": json.dumps({"name": "voxelnet", **backbone}),
        "voxel": json.dumps(GRID),
        "leak": "ssl-teacher",
        "teacher": "a teacher",
    }
    export_backbone(tmp_path / "net.safetensors", other.get_submodule("backbone"), metadata=metadata)
    for init in (str(tmp_path / "net.safetensors"), f"tandem:{tmp_path / 'net.safetensors'}"):
        _, detector, start = filled(config(init))
        assert equal(detector, other, "backbone")
        assert (start.leak, start.teacher) == ("ssl-teacher", "a teacher")
        assert start.sha256 == sha256_of(init)
    write_checkpoint(tmp_path / "detector", 5, other.state_dict(), dump_run(settings))
    _, detector, start = filled(config(str(tmp_path / "detector")))
    assert equal(detector, other, "dense_head"), "a detector of the same settings is taken whole"
    assert start.random == ()
    fewer = config(str(tmp_path / "detector"), "model.classes=[car]")
    fresh, detector, start = filled(fewer)
    assert equal(detector, other, "backbone")
    assert equal(detector, fresh, "dense_head")
    assert start.leak == "supervised-teacher"
    save_file({"x": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ConfigError, match=r"init=.*foreign.safetensors: weights: .* has format None"):
        filled(config(str(tmp_path / "foreign.safetensors")))


def test_a_file_of_another_project(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whole where its head is this one; else the 3D network; and what it does not say is taken for granted by name."""
    settings = config("random")
    torch.manual_seed(3)
    other = settings.model.build()
    layout = LAYOUTS["openpcdet"]
    theirs = to_theirs(layout, other)
    kernels = {key: v.permute(1, 2, 3, 4, 0).contiguous() if v.ndim == 5 else v for key, v in theirs.items()}
    file = tmp_path / "theirs.pth"
    torch.save({"model_state": kernels, "epoch": 80}, file)
    _, detector, start = filled(config(f"openpcdet:{file}"))
    assert equal(detector, other, "backbone")
    assert equal(detector, other, "dense_head")
    assert start.filled == ("backbone", "dense_head")
    assert start.assumed.startswith(
        "it learnt from what this detector is fed: x, y, z in metres, intensity from 0 to 1"
    )
    assert "kernels turned from the order of spconv 1.x or mmcv" in caplog.text
    assert "does not say what it was fed; assumed: it learnt" in caplog.text
    assert (start.leak, start.name, start.sha256) == ("unknown", "theirs", sha256_of(f"openpcdet:{file}"))

    fresh, detector, start = filled(config(f"openpcdet:{file}", "model.classes=[car]"))
    assert equal(detector, other, "backbone")
    assert equal(detector, fresh, "dense_head")
    assert start.random == ("dense_head",)
    assert "left out: dense_head" in caplog.text

    said = {"tandem_version": "1", "voxel": json.dumps({**GRID, "reduce": "first"}), "leak": "none"}
    torch.save(layout.wrap(theirs, said), file)
    with pytest.raises(ConfigError, match=r"data.voxel.reduce: got mean, expected first: init=openpcdet:"):
        filled(config(f"openpcdet:{file}"))
    torch.save(layout.wrap(theirs, {**said, "voxel": json.dumps(GRID)}), file)
    assert filled(config(f"openpcdet:{file}"))[2].assumed == ""
    torch.save({"state_dict": theirs}, file)
    with pytest.raises(ConfigError, match=r"is not in the layout of OpenPCDet"):
        filled(config(f"openpcdet:{file}"))
    half = {key: value for key, value in theirs.items() if not key.startswith("backbone_3d.conv4")}
    torch.save({"model_state": half}, file)
    with pytest.raises(ConfigError, match=r"missing: (backbone\.)?encoder\.layers"):
        filled(config(f"openpcdet:{file}"))


def test_the_run_goes_on_without_its_source_and_not_with_another(tmp_path: Path) -> None:
    folder = pretrained(tmp_path / "run")
    settings = config(str(folder))
    state = {"fingerprint": {"init": sha256_of(str(folder))}}
    before = Continued(state=state, resolved={}, config=settings, changes=())
    assert assemble_network(settings, before, ALONE).fingerprint == {"init": sha256_of(str(folder))}
    gone = config(str(tmp_path / "gone"))
    assert assemble_network(gone, before, ALONE).fingerprint == {"init": sha256_of(str(folder))}
    with pytest.raises(CheckpointError, match=r"init=random: here was built with other weights \("):
        assemble_network(config("random"), before, ALONE)


# ---- several towers

UNET: dict[str, Any] = {"name": "res16unet", "preset": "res16unet_tiny", "in_channels": 4}
RESNET: dict[str, Any] = {"name": "resnet", "preset": "resnet10_tiny"}
FPN: dict[str, Any] = {"name": "resnet_fpn", "preset": "resnet10_tiny", "channels": 16}
METHODS: dict[str, dict[str, Any]] = {
    "both": {"name": "simipu", "backbone": UNET, "image_backbone": RESNET},
    "both_fpn": {"name": "simipu", "backbone": UNET, "image_backbone": FPN},
    "points": {"name": "pointcontrast", "backbone": UNET},
    "images": {"name": "moco", "image_backbone": RESNET},
}


def towers_of(folder: Path, method: str) -> str:
    tree = {"run_dir": str(folder), "data": {"shards": "none", "voxel": GRID}, "method": METHODS[method]}
    run = read_run(None, defaults=tree)
    torch.manual_seed(7)
    write_checkpoint(folder, 3, run.method.build().state_dict(), dump_run(run))
    return str(folder)


def two_towers(init: str, *init_towers: str, image: ImageEncoderConfig | None = None) -> FinetuneConfig:
    model = TwoTowerConfig(
        backbone=Res16UNetConfig(preset="res16unet_tiny", in_channels=4),
        image_backbone=image or ResNetEncoderConfig(preset="resnet10_tiny"),
    )
    return dataclasses.replace(config("random"), model=model, init=init, init_towers=init_towers)


@pytest.mark.parametrize(
    ("method", "chosen", "taken"),
    [
        ("both", (), ("backbone", "image_backbone")),
        ("both", ("backbone",), ("backbone",)),
        ("both", ("image_backbone",), ("image_backbone",)),
        ("points", (), ("backbone",)),
        ("images", (), ("image_backbone",)),
    ],
)
def test_a_run_fills_the_towers_that_both_have_or_the_chosen_one(
    tmp_path: Path, method: str, chosen: tuple[str, ...], taken: tuple[str, ...]
) -> None:
    settings = two_towers(towers_of(tmp_path / "run", method), *chosen)
    fresh, detector, start = filled(settings)
    for tower in ("backbone", "image_backbone"):
        assert equal(fresh, detector, tower) == (tower not in taken)
        assert any(name.startswith(f"{tower}.") for name in start.filled) == (tower in taken)
        assert (tower in start.random) == (tower not in taken)
    assert equal(fresh, detector, "head")
    assert start.name == METHODS[method]["name"] + (f", {chosen[0]} only" if chosen else "")
    check_fits(open_source(tmp_path / "run").config.method, settings.data.voxel, settings)


def test_no_tower_in_common_names_those_of_both(tmp_path: Path) -> None:
    images = towers_of(tmp_path / "images", "images")
    wanted = r"MocoConfig trains `image_backbone` \(image network\), the detector SecondConfig has `backbone` \(3D netw"
    with pytest.raises(ConfigError, match=wanted):
        filled(config(images))
    with pytest.raises(ConfigError, match=r"expected a run with `backbone` \(3D network\), or init_towers without"):
        filled(two_towers(images, "backbone"))
    with pytest.raises(ValueError, match=r"init_towers.*some of backbone, which the network has"):
        config("random", "init_towers=[image_backbone]")
    with pytest.raises(ConfigError, match=r"a file of weights fills `backbone` \(3D network\), the detector Two"):
        filled(two_towers("slidr:model.pt", "image_backbone"))


def test_a_tower_that_does_not_fit_is_left_random_only_knowingly(tmp_path: Path) -> None:
    both = towers_of(tmp_path / "both", "both")
    settings = two_towers(both)
    network = dataclasses.replace(config("random").model.tower("backbone"), voxel_size_m=None)  # type: ignore[type-var]
    model = dataclasses.replace(settings.model, backbone=network)
    other = dataclasses.replace(settings, model=model)
    with pytest.raises(ConfigError, match=r'leave it random \(init_towers=\["image_backbone"\]\)'):
        filled(other)
    assert "backbone" in filled(dataclasses.replace(other, init_towers=("image_backbone",)))[2].random


def test_a_pyramid_stays_random_or_is_left_out_whole(tmp_path: Path) -> None:
    plain, pyramid = towers_of(tmp_path / "plain", "images"), towers_of(tmp_path / "pyramid", "both_fpn")
    fpn = ResNetFpnConfig(preset="resnet10_tiny", channels=16)
    start = filled(two_towers(plain, image=fpn))[2]
    assert start.filled == ("image_backbone.network",)
    assert start.random == ("image_backbone.lateral", "image_backbone.smooth", "backbone", "norm", "head")
    start = filled(two_towers(pyramid, "image_backbone"))[2]
    assert start.left_out == ("image_backbone.lateral", "image_backbone.smooth")
    assert "left out: image_backbone.lateral, image_backbone.smooth" in str(start)
    start = filled(two_towers(pyramid, image=fpn))[2]
    assert start.filled[-3:] == ("image_backbone.lateral", "image_backbone.network", "image_backbone.smooth")


def test_image_weights_of_the_detectors_own_section_are_named_and_replaced(tmp_path: Path) -> None:
    """A baseline with ImageNet's weights is not told as one that saw no label."""
    images, both = towers_of(tmp_path / "images", "images"), towers_of(tmp_path / "both", "both")
    own = ResNetEncoderConfig(preset="resnet10_tiny", weights=f"tandem:{images}")
    fresh, detector, start = filled(two_towers("random", image=own))
    assert equal(fresh, detector, "image_backbone")
    assert (start.filled, start.leak, start.teacher) == (
        ("image_backbone",),
        "ssl-teacher",
        "resnet10_tiny (tandem)",
    )
    fresh, detector, start = filled(two_towers(both, image=own))
    assert not equal(fresh, detector, "image_backbone")


def test_a_chosen_tower_is_part_of_the_setting_and_none_is_not() -> None:
    tree = yaml.safe_load(dump_run(config("random")))
    before = {name: value for name, value in tree.items() if name != "init_towers"}
    assert setting_of_tree(before) == setting_of_tree(tree)
    assert setting_of_tree({**tree, "init_towers": ["backbone"]}) != setting_of_tree(tree)


def test_fusion_leaves_the_first_layer_of_the_3d_network_random(tmp_path: Path) -> None:
    """It takes fused points; features of voxels are then of no concern, another grid still is."""
    fpn = {**FPN, "channels": 8}
    tree = {"run_dir": "here", "data": {"shards": "none", "voxel": GRID}, "init": str(tmp_path / "run")}
    fusion = {"widths": [8], "lateral_channels": 8, "channels": 16}
    backbone = {**SECOND["backbone"], "in_channels": 16}
    model = {**SECOND, "name": "mvx_net", "backbone": backbone, "image_backbone": fpn, "fusion": fusion}
    settings = read_run(None, defaults={**tree, "model": model})
    assert isinstance(settings, FinetuneConfig)
    pretrained(tmp_path / "run", voxel={**GRID, "reduce": "first"})
    fresh, detector, start = filled(settings)
    assert start.filled == ("backbone.bev_backbone", "backbone.encoder")
    assert start.random == ("backbone.encoder.layers.0", "image_backbone", "voxel_encoder", "dense_head")
    assert equal(fresh, detector, "backbone.encoder.layers.0")
    assert not equal(fresh, detector, "backbone.encoder.layers.1")
    assert start.grid is not None
    # Whole where the other detector is the same; its 3D network alone does nothing.
    write_checkpoint(tmp_path / "same", 2, fresh.state_dict(), dump_run(settings))
    again = dataclasses.replace(settings, init=str(tmp_path / "same"))
    assert equal(filled(again)[1], fresh, "backbone.encoder.layers.0")
    assert settings.has_tower("image_backbone")
    with pytest.raises(ConfigError, match=r"MvxNetConfig has no section `backbone` that works alone \(it has an image"):
        check_tower(settings, "backbone", ["knn"])
    with pytest.raises(CheckpointError, match=r"fed with what the rest of MvxNetConfig makes of points"):
        export.main([str(tmp_path / "same"), str(tmp_path / "out.safetensors")])
