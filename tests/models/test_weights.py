"""Loading of public image checkpoints and of our own backbones."""

import argparse
import itertools
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from launchers.exporting.proof import random_voxels
from models.image.resnet import ResNet
from models.image.resnet_encoder import ResNetEncoderConfig
from models.lidar.inputs import SLIDR_INPUT, PointInput
from models.lidar.minkowski import to_minkowski
from models.lidar.res16unet import Res16UNet, Res16UNetConfig
from models.lidar.sparse import sparse_tensor
from models.weights import (
    IMAGE_FORMATS,
    export_backbone,
    load_backbone,
    load_image_weights,
    load_slidr_backbone,
    load_state,
    read_backbone_metadata,
    read_checkpoint,
)


def _resnet(seed: int) -> ResNet:
    torch.manual_seed(seed)
    return ResNet("resnet18")


def _file(file_format: str, state: dict[str, Tensor]) -> dict[str, object]:
    """A checkpoint as that family's training code writes it, with what lies beside the encoder."""

    def put(prefix: str, extra: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        return {prefix + key: value for key, value in (state | (extra or {})).items()}

    other = {key: torch.zeros_like(value) for key, value in state.items()}
    fc = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    if file_format == "torchvision":
        return dict(state | fc)
    if file_format in ("moco_v1", "moco_v2"):
        head = fc if file_format == "moco_v1" else {"fc.0.weight": torch.zeros(8, 512), "fc.2.bias": torch.zeros(8)}
        momentum = {f"module.encoder_k.{key}": value for key, value in other.items()}
        queue = {"module.queue": torch.zeros(128, 16), "module.queue_ptr": torch.zeros(1)}
        return {"epoch": 200, "arch": "resnet18", "state_dict": put("module.encoder_q.", head) | momentum | queue}
    if file_format == "moco_v3":
        momentum = {f"module.momentum_encoder.{key}": value for key, value in other.items()}
        head = {"fc.0.weight": torch.zeros(8, 512), "fc.1.running_mean": torch.zeros(8)}
        return {"epoch": 3, "state_dict": put("module.base_encoder.", head) | momentum}
    if file_format == "slidr_images":
        images = put("encoder.", fc) | {"decoder.0.weight": torch.zeros(64, 512, 1, 1)}
        return {"model_points": {"conv0p1s1.kernel": torch.zeros(125, 1, 32)}, "model_images": images, "epoch": 50}
    if file_format in ("openmmlab_bgr", "openmmlab_rgb"):
        return {"meta": {}, "state_dict": put("img_backbone.") | {"bbox_head.weight": torch.zeros(1)}}
    head = {f"module.head.{key}": torch.zeros(2) for key in ("mlp.0.weight", "last_layer.weight_g")}
    student = {f"module.backbone.{key}": value for key, value in other.items()}
    return {
        "teacher": put("module.backbone.") | head,
        "student": student | head,
        "epoch": 1,
        "args": argparse.Namespace(arch="resnet18"),
    }


@pytest.mark.parametrize("file_format", list(IMAGE_FORMATS))
def test_every_format_fills_every_tensor(tmp_path: Path, file_format: str):
    source, target = _resnet(0), _resnet(1)
    torch.save(_file(file_format, source.state_dict()), tmp_path / "weights.pth")
    report = load_image_weights(target, file_format, str(tmp_path / "weights.pth"))
    assert report.share == 1
    assert report.unused == report.missing == report.mismatched == ()
    assert report.dropped
    converted = {"conv1.weight"} if file_format == "openmmlab_bgr" else set()
    for key, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[key]) == (key not in converted), key


def test_dino_backbone_file_is_flat(tmp_path: Path):
    source, target = _resnet(0), _resnet(1)
    torch.save(source.state_dict(), tmp_path / "dino_resnet18.pth")
    assert load_image_weights(target, "dino", str(tmp_path / "dino_resnet18.pth")).share == 1


def test_safetensors(tmp_path: Path):
    source, target = _resnet(0), _resnet(1)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    assert load_image_weights(target, "torchvision", str(tmp_path / "weights.safetensors")).share == 1
    assert torch.equal(source.conv1.weight, target.conv1.weight)


def test_old_files_without_batch_counters_match_wholly(tmp_path: Path):
    state = {k: v for k, v in _resnet(0).state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    assert load_image_weights(_resnet(1), "torchvision", str(tmp_path / "old.pth")).share == 1


def test_the_wrong_format_is_refused_and_the_right_one_named(tmp_path: Path):
    torch.save(_file("moco_v2", _resnet(0).state_dict()), tmp_path / "moco.pth.tar")
    target = _resnet(1)
    before = target.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"only 0% .* at least 90%.*looks like 'moco_v1' \(100%"):
        load_image_weights(target, "torchvision", str(tmp_path / "moco.pth.tar"))
    assert torch.equal(before, target.conv1.weight)
    with pytest.raises(ValueError, match="unknown format 'moco'"):
        load_image_weights(target, "moco", str(tmp_path / "moco.pth.tar"))


def test_report_names_what_became_of_each_key():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    state = dict(module.state_dict())
    del state["1.running_mean"]
    state["2.weight"] = torch.zeros(5, 2)
    state["3.weight"] = torch.zeros(1)
    report = load_state(module, state, source="a test", min_match=0.5)
    assert report.missing == ("1.running_mean",)
    assert report.mismatched == (("2.weight", (2, 2), (5, 2)),)
    assert report.unused == ("3.weight",)
    assert report.share == 6 / 8
    text = report.text()
    assert "a test: 6 matched (75% of the network), 1 missing, 1 mismatched, 1 unused" in text
    assert "2.weight (network (2, 2), file (5, 2))" in text
    with pytest.raises(ValueError, match="only 75%"):
        load_state(module, state, source="a test", min_match=0.76)


def test_values_that_are_not_finite_are_refused():
    module = nn.Linear(2, 2)
    state = {"weight": torch.tensor([[1.0, float("nan")], [0.0, 0.0]]), "bias": torch.zeros(2)}
    with pytest.raises(ValueError, match="not finite: weight"):
        load_state(module, state, source="a test")


class _Payload:
    def __reduce__(self):
        return (os.mkdir, (str(Path(os.environ["TANDEM_TEST_DIR"]) / "executed"),))


def test_a_file_that_would_execute_code_is_read_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TANDEM_TEST_DIR", str(tmp_path))
    torch.save({"state_dict": {}, "args": _Payload()}, tmp_path / "evil.pth")
    assert read_checkpoint(tmp_path / "evil.pth")["state_dict"] == {}
    assert "evil.pth: read as data, and nothing built or called of posix.mkdir" in caplog.text
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert (tmp_path / "executed").exists(), "the file is a working one"


@pytest.mark.parametrize("name", ["damaged.pth", "damaged.safetensors", "empty.pth"])
def test_damaged_files_are_refused(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"" if name == "empty.pth" else b"\x80\x02no weights at all" * 10)
    with pytest.raises(ValueError, match=name):
        read_checkpoint(tmp_path / name)
    with pytest.raises(ValueError, match="is not a file"):
        read_checkpoint(tmp_path / "absent.pth")


def test_a_file_without_names_is_refused(tmp_path: Path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, expected a dictionary"):
        read_checkpoint(tmp_path / "list.pth")
    with (tmp_path / "plain.pth").open("wb") as file:
        pickle.dump({"a": 1}, file, protocol=2)
    with pytest.raises(ValueError, match="plain"):
        read_checkpoint(tmp_path / "plain.pth")


# ---- our own backbones


def test_backbone_round_trip(tmp_path: Path):
    source, target = (
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
    )
    path = tmp_path / "deep" / "backbone.safetensors"
    export_backbone(path, source, metadata={"backbone": '{"preset": "tiny"}', "step": "12"})
    report, metadata = load_backbone(path, target)
    assert report.share == 1
    assert metadata == read_backbone_metadata(path) == {"backbone": '{"preset": "tiny"}', "step": "12"}
    for key, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[key])
    assert os.listdir(path.parent) == ["backbone.safetensors"]


def test_export_refuses_what_nobody_could_use(tmp_path: Path):
    broken = nn.Linear(1, 1)
    nn.init.constant_(broken.weight, float("inf"))
    with pytest.raises(ValueError, match="not finite: weight"):
        export_backbone(tmp_path / "a.safetensors", broken, metadata={})
    with pytest.raises(ValueError, match=r"ends in \.safetensors"):
        export_backbone(tmp_path / "a.pt", nn.Linear(1, 1), metadata={})
    assert os.listdir(tmp_path) == []


def test_only_exported_backbones_are_loaded(tmp_path: Path):
    save_file({"weight": torch.zeros(1, 1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="tandem export"):
        load_backbone(tmp_path / "other.safetensors", nn.Linear(1, 1))
    (tmp_path / "damaged.safetensors").write_bytes(b"0123456789")
    with pytest.raises(ValueError, match="cannot be read"):
        read_backbone_metadata(tmp_path / "damaged.safetensors")
    export_backbone(tmp_path / "mine.safetensors", nn.Linear(3, 3), metadata={})
    with pytest.raises(ValueError, match="only 0%"):
        load_backbone(tmp_path / "mine.safetensors", nn.Linear(2, 2, bias=False))


def test_a_network_of_bgr_images_gives_its_features_on_ours(tmp_path: Path):
    torch.manual_seed(0)
    theirs = ResNet("resnet10_tiny").eval()
    torch.save(_file("openmmlab_bgr", theirs.state_dict()), tmp_path / "model.pth")
    images = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8)
    mean_bgr = torch.tensor([103.53, 116.28, 123.675]).view(1, 3, 1, 1)
    encoder = (
        ResNetEncoderConfig(preset="resnet10_tiny", weights=f"openmmlab_bgr:{tmp_path / 'model.pth'}").build().eval()
    )
    with torch.no_grad():
        expected = theirs(images.flip(1).float() - mean_bgr)
        torch.testing.assert_close(encoder(images), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


# ---- SLidR's own checkpoints


def _tiny() -> Res16UNet:
    return Res16UNetConfig(preset="res16unet_tiny", in_channels=2, backend="torch").build()


def _slidr_file(backbone: nn.Module, head: nn.Linear) -> dict[str, Tensor]:
    return to_minkowski(backbone.state_dict(), (head.weight.detach(), head.bias.detach()))


@pytest.mark.parametrize("layout", ["release", "lightning", "flat"])
def test_slidr_checkpoints(tmp_path: Path, layout: str):
    torch.manual_seed(0)
    source, target = _tiny(), _tiny()
    source_head, target_head = nn.Linear(48, 64), nn.Linear(48, 64)
    points = _slidr_file(source, source_head)
    assert points["final.kernel"].shape == (48, 64)
    image = {"encoder.conv1.weight": torch.zeros(1), "decoder.0.weight": torch.zeros(1)}
    content = {
        "release": {"model_points": points, "model_images": image, "epoch": 50, "config": {"lr": 0.5}},
        "lightning": {
            "state_dict": {f"model_points.{key}": value for key, value in points.items()}
            | {f"model_images.{key}": value for key, value in image.items()}
        },
        "flat": points,
    }[layout]
    torch.save(content, tmp_path / "model.pt")
    report = load_slidr_backbone(tmp_path / "model.pt", target, head=target_head)
    assert report.share == 1
    assert report.unused == ()
    assert set(report.dropped) == {"final.kernel", "final.bias"}
    for key, value in source.state_dict().items():
        if key == "stem.weight":  # was fed intensities of 0 to 255, the last channel
            value = value * torch.tensor([1.0, 255.0])[:, None]
        assert torch.equal(value, target.state_dict()[key]), key
    assert torch.equal(source_head.weight, target_head.weight)


def _fed(network: Res16UNet, cells: Tensor, intensity: Tensor, fed: PointInput) -> Tensor:
    """Features of a network in evaluation mode, whose loader makes `fed` of intensities from 0 to 1."""
    with torch.no_grad():
        return network(cells, fed.intensity_offset + fed.intensity_scale * intensity, 2)


@pytest.mark.parametrize(
    "fed", [SLIDR_INPUT, PointInput(intensity_scale=2.0, intensity_offset=1.0)], ids=["scale", "offset"]
)
def test_statistics_of_another_scale_of_intensity_go_with_it_in_both_directions(tmp_path: Path, fed: PointInput):
    """Without the scale the features are others (SLidR's BatchNorm holds statistics of 0 to 255)."""
    torch.manual_seed(2)
    cells, intensity, _ = random_voxels(1)
    config = Res16UNetConfig(preset="res16unet_tiny", in_channels=1, backend="torch")
    theirs, here, there = (config.build() for _ in range(3))
    for _ in range(20):
        _fed(theirs.train(), cells, torch.rand(len(cells), 1), fed)
    expected = _fed(theirs.eval(), cells, intensity, fed)
    scale = float(expected.abs().max())

    torch.save({"model_points": to_minkowski(theirs.state_dict())}, tmp_path / "theirs.pt")
    load_slidr_backbone(tmp_path / "theirs.pt", here, fed=None if fed == SLIDR_INPUT else fed)
    as_here = fed.scaled(1 / fed.intensity_scale)
    assert as_here.intensity_scale == 1
    torch.testing.assert_close(_fed(here.eval(), cells, intensity, as_here), expected, rtol=0, atol=1e-5 * scale)

    # What the file said until now: read by a version that knew of no scale.
    as_before = {"model_points": to_minkowski(theirs.state_dict()), "config": {"tandem_version": "0.2.0"}}
    torch.save(as_before, tmp_path / "before.pt")
    load_slidr_backbone(tmp_path / "before.pt", there)
    assert torch.equal(there.stem.weight, theirs.stem.weight)
    assert float((_fed(there.eval(), cells, intensity, as_here) - expected).abs().max()) > 0.1 * scale

    torch.save({"model_points": to_minkowski(here.state_dict(), fed=fed)}, tmp_path / "ours.pt")
    load_slidr_backbone(tmp_path / "ours.pt", there, fed=PointInput())  # SLidR's code reads tensors as they are
    torch.testing.assert_close(_fed(there, cells, intensity, fed), expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("text", ["", "{}", '{"intensity_scale": 0, "intensity_offset": 0}', '{"features": "colour"}'])
def test_a_statement_of_the_input_that_makes_no_sense_is_refused(tmp_path: Path, text: str):
    points = _slidr_file(_tiny(), nn.Linear(48, 64))
    torch.save({"model_points": points, "config": {"tandem_version": "0.3.0", "input": text}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="the statement of the input"):
        load_slidr_backbone(tmp_path / "model.pt", _tiny())


def test_a_slidr_checkpoint_of_another_size_is_refused(tmp_path: Path):
    other = Res16UNetConfig(preset="res16unet_tiny", in_channels=1, backend="torch").build()
    points = _slidr_file(other, nn.Linear(48, 64))
    torch.save({"model_points": points}, tmp_path / "model.pt")
    report = load_slidr_backbone(tmp_path / "model.pt", _tiny())
    assert [key for key, *_ in report.mismatched] == ["stem.weight"]
    with pytest.raises(ValueError, match="only 0%"):
        load_slidr_backbone(tmp_path / "model.pt", _tiny(), head=nn.Linear(48, 8))
    with pytest.raises(ValueError, match=r"stem\.weight"):
        load_slidr_backbone(tmp_path / "model.pt", _tiny(), min_match=1.0)


def test_impulses_meet_the_kernels_of_a_slidr_file_in_their_order(tmp_path: Path):
    """Offset number k = x + size y + size^2 z, first axis fastest; out(p) = sum_k in(stride p + offset_k) W[k]."""
    torch.manual_seed(1)
    points = _slidr_file(_tiny(), nn.Linear(48, 64))
    torch.save({"model_points": points}, tmp_path / "model.pt")
    network = _tiny()
    load_slidr_backbone(tmp_path / "model.pt", network, fed=PointInput())
    cells = torch.cartesian_prod(*[torch.arange(-2, 3)] * 3)
    coords = torch.cat([torch.zeros(len(cells), 1, dtype=torch.long), cells], dim=1)
    row = {tuple(cell): index for index, cell in enumerate(cells.tolist())}
    impulse = torch.zeros(len(cells), 2)
    impulse[row[0, 0, 0], 1] = 1.0
    grid, _ = sparse_tensor(coords, impulse, 1)
    out = network.stem(grid).features
    for x, y, z in itertools.product((-1, 0, 1), repeat=3):
        number = (x + 1) + 3 * (y + 1) + 9 * (z + 1)
        torch.testing.assert_close(out[row[-x, -y, -z]], points["conv0p1s1.kernel"][number, 1])
    assert out[row[2, 0, 0]].abs().sum() == 0

    wide = grid.with_features(torch.zeros(len(cells), 16))
    for x, y, z in itertools.product((0, 1), repeat=3):
        wide.features.zero_()
        wide.features[row[x, y, z], 3] = 1.0
        number = x + 2 * y + 4 * z
        coarse = network.encoder[0].down(wide)
        cell = coarse.coords[:, 1:].tolist().index([0, 0, 0])
        torch.testing.assert_close(coarse.features[cell], points["conv1p1s2.kernel"][number, 3])
        assert (coarse.features.abs().sum(dim=1) > 0).sum() == 1

    spread = torch.zeros(len(coarse.features), 48)
    spread[cell, 5] = 1.0
    up = network.decoder[3].up(coarse.with_features(spread), wide).features
    for x, y, z in itertools.product((0, 1), repeat=3):
        number = x + 2 * y + 4 * z
        torch.testing.assert_close(up[row[x, y, z]], points["convtr7p2s2.kernel"][number, 5])
    assert (up.abs().sum(dim=1) > 0).sum() == 8
