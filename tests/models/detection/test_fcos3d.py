"""FCOS3D: targets against a slow reference, losses by hand, decoding, mirrored images, several cameras."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from common.boxes.image import image_boxes
from common.ranges import RangeError
from data.sample import Batch, BatchBoxes, Cameras
from models.detection.camera_boxes import Optics
from models.detection.fcos3d import Fcos3d, Fcos3dConfig
from models.detection.fcos3d_head import Fcos3dHead, Fcos3dHeadConfig, Fcos3dOutputs
from models.detection.image_pyramid import ImagePyramid
from models.detection.suppression import SuppressionConfig
from models.detection.targets_fcos3d import NO_BOX, Locations, assign, centreness
from models.image.fpn import ResNetFpnConfig
from models.image.resnet_encoder import ResNetEncoderConfig
from models.pairing import FeatureMap
from tests.helpers.detection import TINY, street_batch
from tests.reference.detection_targets import box_of_location, locations, seen_from

STRIDES, SIZES, LIMITS = [8, 16, 32], [(12, 24), (6, 12), (3, 6)], [24.0, 48.0]
IMAGE_SIZE = (96, 192)
NMS = SuppressionConfig(min_score=0.05, max_iou=0.8)
MERGE = SuppressionConfig(min_score=0.0, max_iou=0.05)


def tiny() -> Fcos3dConfig:
    config = TINY["fcos3d"]
    assert isinstance(config, Fcos3dConfig)
    return config


def head(num_classes: int = 5, **settings: object) -> Fcos3dHead:
    torch.manual_seed(0)
    config = dataclasses.replace(tiny().head, velocity=True, **settings)
    return Fcos3dHead(config, tuple(f"class {n}" for n in range(num_classes)), STRIDES)


def level_locations() -> Locations:
    return Locations.of(SIZES, STRIDES, LIMITS, torch.device("cpu"))


def mirrored(batch: Batch) -> Batch:
    """Images and intrinsics as the loader mirrors them."""
    assert batch.images is not None
    assert batch.cameras is not None
    flip = torch.tensor([[-1.0, 0, batch.images.shape[-1] - 1], [0, 1, 0], [0, 0, 1]])
    cameras = dataclasses.replace(batch.cameras, K=flip @ batch.cameras.K)
    return dataclasses.replace(batch, images=batch.images.flip(-1), cameras=cameras)


def perfect(locations: Locations, targets: object, shape: tuple[int, int, int], num_codes: int = 9) -> Fcos3dOutputs:
    """Outputs of a network that says what the targets want."""
    images, count, classes = shape
    logits, codes = torch.full((images, count, classes), -9.0), torch.ones(images, count, num_codes)
    directions, central = torch.zeros(images, count, 2), torch.full((images, count), -9.0)
    rows = (targets.image, targets.location)  # type: ignore[attr-defined]
    logits[(*rows, targets.classes)] = 9.0  # type: ignore[attr-defined]
    codes[rows] = targets.codes.nan_to_num()[:, :num_codes]  # type: ignore[attr-defined]
    central[rows] = torch.logit(targets.centreness, eps=1e-4)  # type: ignore[attr-defined]
    angle = torch.remainder(targets.codes[:, 6] - math.pi / 4, 2 * math.pi)  # type: ignore[attr-defined]
    directions[(*rows, (angle >= math.pi).long())] = 9.0
    return Fcos3dOutputs(logits=logits, codes=codes, directions=directions, centreness=central, locations=locations)


# ---- targets


@pytest.mark.parametrize("mirror", [False, True])
def test_targets_equal_the_slow_reference(mirror: bool) -> None:
    batch = street_batch(images=True)
    batch = mirrored(batch) if mirror else batch
    boxes, cameras, model = batch.need("boxes", by="test"), batch.need("cameras", by="test"), head()
    found = model.targets(level_locations(), boxes, cameras, IMAGE_SIZE)
    places, got = locations(SIZES, STRIDES), {}
    for row in range(len(found.image)):
        got[int(found.image[row]), int(found.location[row])] = row
    wanted = 0
    for image, sample in enumerate(cameras.sample.tolist()):
        own = (boxes.sample == sample).nonzero()[:, 0]
        K, T = cameras.K[image], cameras.T_cam_points[image]
        sides = image_boxes(boxes.boxes[own].double(), K.double(), T.double(), IMAGE_SIZE)
        seen = [seen_from(row, K.tolist(), T.tolist()) for row in boxes.boxes[own].tolist()]
        bounds = [
            None if side.isnan().any() or depth <= 0 else tuple(side.tolist())
            for side, (_, depth, _, _) in zip(sides, seen, strict=True)
        ]
        centres = [pixel for pixel, _, _, _ in seen]
        for number, place in enumerate(places):
            box = box_of_location(place, STRIDES, LIMITS, centres, bounds, 1.5)
            assert (box >= 0) == ((image, number) in got)
            if box < 0:
                continue
            wanted += 1
            row, stride = got[image, number], STRIDES[place[0]]
            (u, v), depth, size, angle = seen[box]
            offset = ((place[1] - u) / stride, (place[2] - v) / stride)
            code = torch.tensor([*offset, depth, *size, angle])
            torch.testing.assert_close(found.codes[row, :7], code, rtol=1e-3, atol=1e-3)
            assert found.classes[row] == boxes.classes[own[box]]
            central = math.exp(-2.5 * math.hypot(*offset) / (math.sqrt(2) * 1.5))
            assert float(found.centreness[row]) == pytest.approx(central, rel=1e-3)
    assert wanted == len(found.image) > 20


def test_edge_cases_of_the_assignment() -> None:
    places = level_locations()
    none = assign(places, torch.zeros(0, 2), torch.zeros(0, 4), radius=1.5)
    assert (none == NO_BOX).all()
    # Not in the image; two boxes with one centre: the first; a small and a large one there: each on its level.
    centre = torch.tensor([[80.0, 40]])
    gone = assign(places, centre, torch.full((1, 4), torch.nan), radius=1.5)
    assert (gone == NO_BOX).all()
    bounds = torch.tensor([[72.0, 32, 88, 48]])
    twice = assign(places, centre.repeat(2, 1), bounds.repeat(2, 1), radius=1.5)
    assert set(twice.tolist()) == {NO_BOX, 0}
    both = assign(places, centre.repeat(2, 1), torch.tensor([[72.0, 32, 88, 48], [0, 0, 191, 95]]), radius=1.5)
    fine, coarse = (
        ((places.places_px == torch.tensor(at)).all(dim=1) & (places.strides == stride)).nonzero()[0]
        for at, stride in (([80.0, 40.0], 8), ([96.0, 32.0], 32))
    )
    assert (int(both[fine]), int(both[coarse])) == (0, 1)
    # 1.5 strides away is too far; a centre outside of the image is found at its border.
    alone = assign(places, torch.tensor([[12.0, 16]]), torch.tensor([[4.0, 8, 20, 24]]), radius=1.5)
    finest = places.strides == 8
    found = places.places_px[(alone == 0) & finest]
    assert sorted(set(found[:, 0].tolist())) == [8, 16]  # not 0 and 24
    border = assign(places, torch.tensor([[-6.0, 40]]), torch.tensor([[0.0, 30, 6, 50]]), radius=1.5)
    assert set(places.places_px[(border == 0) & finest][:, 0].tolist()) == {0}
    assert float(centreness(torch.tensor([[1.5, 1.5]]), radius=1.5, decay=2.5)) == pytest.approx(math.exp(-2.5))
    assert float(centreness(torch.zeros(1, 2), radius=1.5, decay=2.5)) == 1


def test_boxes_behind_the_camera_are_in_no_image() -> None:
    batch = street_batch(images=True)
    boxes, cameras = batch.need("boxes", by="test"), batch.need("cameras", by="test")
    behind = dataclasses.replace(
        boxes, boxes=boxes.boxes * torch.tensor([0.0, 0, 1, 1, 1, 1, 1]) + torch.tensor([-9.0, 0, 0, 0, 0, 0, 0])
    )
    assert len(head().targets(level_locations(), behind, cameras, IMAGE_SIZE).image) == 0


# ---- losses


def one_box(velocity: float = 3.0) -> tuple[BatchBoxes, Cameras]:
    """A car 20 m ahead whose centre is projected onto the location (96, 48) of all levels."""
    K = torch.tensor([[160.0, 0, 96], [0, 160, 48], [0, 0, 1]])
    T = torch.tensor([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    cameras = Cameras(
        sample=torch.zeros(1, dtype=torch.long),
        K=K[None],
        T_cam_points=T[None],
        affine=torch.eye(3)[None, :2],
        min_depth_m=torch.ones(1),
    )
    boxes = BatchBoxes(
        boxes=torch.tensor([[20.0, 0, 0, 4, 2, 1.5, 0.3]]),
        velocities_mps=torch.tensor([[velocity, 0.0]]),
        classes=torch.tensor([1]),
        sample=torch.tensor([0]),
    )
    return boxes, cameras


def test_losses_by_hand() -> None:
    """One location has the box (radius .5); all codes are off by one, so smooth L1 is 1 - 1/18; logits are 0."""
    boxes, cameras = one_box()
    model, places = head(radius=0.5), level_locations()
    truth = model.targets(places, boxes, cameras, IMAGE_SIZE)
    assert places.places_px[truth.location].tolist() == [[96.0, 48.0]]
    wanted = [0.0, 0.0, 20.0, 4.0, 2.0, 1.5, -0.3 - math.pi / 2, 0.0, 3.0]
    torch.testing.assert_close(truth.codes[0], torch.tensor(wanted), atol=1e-5, rtol=1e-5)
    outputs = perfect(places, truth, (1, len(places.strides), 5))
    outputs.codes[0, truth.location] += 1.0
    zero = dataclasses.replace(
        outputs, logits=0 * outputs.logits, directions=0 * outputs.directions, centreness=0 * outputs.centreness
    )
    terms = model.loss(zero, boxes, cameras, IMAGE_SIZE)
    plain, turned = 1 - 1 / 18, math.sin(1.0) - 1 / 18
    box = plain * (2 + 0.2 + 3 + 2 * 0.05) + turned
    negatives = len(places.strides) * 5 - 1
    focal = math.log(2) / 4 * (0.25 + 0.75 * negatives)
    assert float(terms.parts["box"]) == pytest.approx(box, rel=1e-4)
    assert float(terms.parts["class"]) == pytest.approx(focal / 2, rel=1e-4)
    assert float(terms.parts["direction"]) == pytest.approx(math.log(2), rel=1e-4)
    assert float(terms.parts["centreness"]) == pytest.approx(math.log(2), rel=1e-4)
    assert float(terms.total) == pytest.approx(sum(map(float, terms.parts.values())), rel=1e-5)
    assert float(terms.watch["positives"]) == 1
    assert float(terms.watch["depth_error_m"]) == pytest.approx(1.0, rel=1e-4)
    assert float(terms.watch["depth_spread_m"]) == 0  # of one depth
    unknown = dataclasses.replace(boxes, velocities_mps=torch.full((1, 2), torch.nan))
    without = model.loss(zero, unknown, cameras, IMAGE_SIZE).parts["box"]
    assert float(without) == pytest.approx(box - plain * 2 * 0.05, rel=1e-4)
    # Nothing is lost where all is said that is wanted.
    said = perfect(places, truth, (1, len(places.strides), 5))
    said.logits[0, truth.location] *= 3
    ideal = model.loss(dataclasses.replace(said, logits=3 * said.logits), boxes, cameras, IMAGE_SIZE)
    assert float(ideal.parts["box"]) == 0
    assert float(ideal.total) < 1e-3


def test_depths_are_watched_beside_what_one_depth_for_all_would_miss_by() -> None:
    batch, model, places = street_batch(images=True), head(), level_locations()
    boxes, cameras = batch.need("boxes", by="test"), batch.need("cameras", by="test")
    truth = model.targets(places, boxes, cameras, IMAGE_SIZE)
    outputs = perfect(places, truth, (len(cameras.sample), len(places.strides), 5))
    depths = truth.codes[:, 2].tolist()
    middle = sorted(depths)[(len(depths) - 1) // 2]
    outputs.codes[truth.image, truth.location, 2] = middle
    watch = model.loss(outputs, boxes, cameras, IMAGE_SIZE).watch
    wanted = sum(abs(depth - middle) for depth in depths) / len(depths)
    assert float(watch["depth_spread_m"]) == pytest.approx(wanted, rel=1e-4)
    assert float(watch["depth_error_m"]) == pytest.approx(wanted, rel=1e-4)
    assert wanted > 1


# ---- decoding


@pytest.mark.parametrize("mirror", [False, True])
def test_what_the_targets_want_is_decoded_to_the_boxes(mirror: bool) -> None:
    batch = street_batch(images=True)
    batch = mirrored(batch) if mirror else batch
    boxes, cameras, model, places = (
        batch.need("boxes", by="test"),
        batch.need("cameras", by="test"),
        head(),
        level_locations(),
    )
    truth = model.targets(places, boxes, cameras, IMAGE_SIZE)
    outputs = perfect(places, truth, (len(cameras.sample), len(places.strides), 5))
    found = model.detect(outputs, cameras, within_image=NMS, within_sample=MERGE)
    shown = 0
    for sample in range(batch.num_samples):
        own, mine = boxes.boxes[boxes.sample == sample], found.boxes[found.sample == sample]
        apart = torch.cdist(mine[:, :3], own[:, :3])
        assert (apart.amin(dim=1) < 0.01).all()
        nearest = own[apart.argmin(dim=1)]
        torch.testing.assert_close(mine[:, 3:6], nearest[:, 3:6], rtol=1e-3, atol=1e-3)
        turns = torch.remainder(mine[:, 6] - nearest[:, 6] + math.pi, 2 * math.pi) - math.pi
        assert (turns.abs() < 0.01).all()
        velocities = boxes.velocities_mps[boxes.sample == sample][apart.argmin(dim=1)]
        torch.testing.assert_close(found.velocities_mps[found.sample == sample], velocities, rtol=1e-3, atol=1e-2)
        # Also those that two cameras see are found once.
        assert len(set(apart.argmin(dim=1).tolist())) == len(mine)
        shown += len(mine)
    assert shown > 12


def test_a_location_may_be_of_two_classes_and_equal_boxes_of_two_cameras_are_one() -> None:
    boxes, cameras = one_box()
    model, places = head(radius=0.5), level_locations()
    truth = model.targets(places, boxes, cameras, IMAGE_SIZE)
    outputs = perfect(places, truth, (1, len(places.strides), 5))
    outputs.logits[0, truth.location, 3] = 8.0
    found = model.detect(outputs, cameras, within_image=NMS, within_sample=MERGE)
    assert found.classes.tolist() == [1, 3]
    twice = Cameras(**{f.name: getattr(cameras, f.name).repeat_interleave(2, 0) for f in dataclasses.fields(Cameras)})
    fields = {f.name: getattr(outputs, f.name) for f in dataclasses.fields(outputs) if f.name != "locations"}
    both = Fcos3dOutputs(**{name: value.repeat_interleave(2, 0) for name, value in fields.items()}, locations=places)
    assert model.detect(both, twice, within_image=NMS, within_sample=MERGE).classes.tolist() == [1, 3]
    assert (
        len(model.detect(both, twice, within_image=NMS, within_sample=dataclasses.replace(MERGE, max_iou=1.0)).scores)
        == 4
    )
    low = dataclasses.replace(NMS, min_score=0.9999)
    assert len(model.detect(outputs, cameras, within_image=low, within_sample=MERGE).scores) == 0


def test_candidates_are_the_best_of_each_level() -> None:
    model = head(candidates_per_level=2)
    scores = torch.arange(10.0)
    assert model._candidates(scores, [6, 3, 1]).tolist() == [5, 4, 8, 7, 9]


# ---- networks


def test_the_pyramid_keeps_cells_where_they_are() -> None:
    """A bump in a coarse map stays on its pixel in finer ones."""
    pyramid = ImagePyramid([1, 1, 1, 1], 1, 5)
    for module in pyramid.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            module.weight.data[0, 0, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1.0
    maps = [FeatureMap(torch.zeros(1, 1, 64 // s, 128 // s), s) for s in (4, 8, 16, 32)]
    maps[3].values[0, 0, 1, 2] = 1.0  # pixel (64, 32)
    levels = pyramid(maps)
    assert [tuple(level.shape[-2:]) for level in levels] == [(8, 16), (4, 8), (2, 4), (1, 2), (1, 1)]
    assert pyramid.strides == (8, 16, 32, 64, 128)
    for level, stride in zip(levels[:3], pyramid.strides, strict=False):
        row, column = divmod(int(level.argmax()), level.shape[-1])
        assert (stride * column, stride * row) == (64, 32)


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        model = Fcos3dConfig(classes=tuple("abcdefghij")).build()
    assert model.pyramid.strides == (8, 16, 32, 64, 128)
    assert model.dense_head.config.code_weights == (1, 1, 0.2, 1, 1, 1, 1, 0.05, 0.05)
    assert model.dense_head.classes[-1].out_channels == 10
    spec = Fcos3dConfig().batch_spec()
    assert (spec.images, spec.need_pairs, spec.superpixels) == (True, False, False)


def test_deformable_towers_velocities_and_frozen_stages_learn() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(
        tiny(), frozen_stages=1, head=dataclasses.replace(tiny().head, deformable=True, velocity=True)
    )
    model, batch = config.build().train(), street_batch(((1, 3),), images=True)
    model(batch).total.backward()
    network = model.image_backbone.network
    assert not network.bn1.training
    assert not any(module.training for module in network.layer1.modules())
    assert network.layer2.training
    for name, parameter in model.named_parameters():
        frozen = name.startswith("image_backbone.network.") and name.split(".")[2] in ("conv1", "bn1", "layer1")
        assert (parameter.grad is None) == frozen == (not parameter.requires_grad), name
    model.eval()
    model.nms = dataclasses.replace(model.nms, min_score=0.0)
    with torch.no_grad():
        found = model.detect(batch)
    assert len(found.scores) > 0
    assert found.velocities_mps.isfinite().all()


def test_what_is_found_in_a_mirrored_image_lies_on_the_other_side() -> None:
    """The network's own right is the camera's left there."""
    batch = street_batch(((0, 0),), images=True)
    model = tiny().build().eval()
    model.nms = dataclasses.replace(model.nms, min_score=0.0, num_after=10)
    other = mirrored(batch)
    cameras = dataclasses.replace(other.need("cameras", by="test"), K=batch.need("cameras", by="test").K)
    with torch.no_grad():
        outputs = model.outputs(other)
        right = model.dense_head._detect(outputs, 1, Optics.of(other.need("cameras", by="test")), model.nms)
        plain = model.dense_head._detect(outputs, 1, Optics.of(cameras), model.nms)
    # The camera that looks ahead: left and right of its axis are y and -y of the sensor, but for its small tilt.
    torch.testing.assert_close(right[2], plain[2])
    centre = (batch.images.shape[-1] - 1) / 2  # type: ignore[union-attr]
    assert float(cameras.K[1, 0, 2]) == pytest.approx(centre, abs=0.6)
    across = (right[0][:, 1] + plain[0][:, 1]).abs() / right[0][:, 0].clamp(min=1)
    assert (across < 0.1).all()


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image_backbone: expected a plain ResNet.*set image_backbone.name=resnet"):
        dataclasses.replace(tiny(), image_backbone=ResNetFpnConfig())
    with pytest.raises(ValueError, match=r"image_backbone\.dilated=false"):
        dataclasses.replace(tiny(), image_backbone=ResNetEncoderConfig(dilated=True))
    with pytest.raises(RangeError, match="frozen_stages: got 5, expected 0 to 4"):
        dataclasses.replace(tiny(), frozen_stages=5)
    with pytest.raises(RangeError, match=r"limits_px: got \(48.0, 24.0\), expected two or more rising numbers"):
        Fcos3dHeadConfig(limits_px=(48.0, 24.0))
    with pytest.raises(RangeError, match=r"channels: got 48, expected a multiple of groups \(32\)"):
        Fcos3dHeadConfig(channels=48)
    model = tiny().build()
    assert isinstance(model, Fcos3d)
    with pytest.raises(ValueError, match="FCOS3D needs calibrated images"):
        model(street_batch())
    with pytest.raises(ValueError, match="FCOS3D needs labelled boxes"):
        model(dataclasses.replace(street_batch(images=True), boxes=None))


def test_a_sample_without_objects_or_whose_boxes_no_image_shows() -> None:
    batch = street_batch(((0, 0),), images=True)
    boxes = batch.need("boxes", by="test")
    away: Tensor = boxes.boxes - torch.tensor([500.0, 0, 0, 0, 0, 0, 0])
    for rows in (boxes.boxes[:0], away):
        own = dataclasses.replace(
            boxes,
            boxes=rows,
            velocities_mps=boxes.velocities_mps[: len(rows)],
            classes=boxes.classes[: len(rows)],
            sample=boxes.sample[: len(rows)],
        )
        model = tiny().build().train()
        terms = model(dataclasses.replace(batch, boxes=own))
        terms.total.backward()
        assert terms.parts["box"] == terms.parts["centreness"] == 0
        assert terms.parts["class"] > 0
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
