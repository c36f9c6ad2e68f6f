"""What holds for every detector, at toy size on sweeps of the street world."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from configs.detection import TOWERS
from data.batch_spec import VoxelConfig
from data.sample import Batch
from models.detection import DETECTORS
from models.detection.base import Detections, Detector
from models.detection.centerpoint import CenterPointConfig
from models.detection.second import SecondConfig
from models.lidar.res16unet import Res16UNetConfig
from models.lidar.voxelnet import VoxelNetConfig
from models.methods.base import LossTerms
from tests.helpers.detection import CLASSES, TINY, VOXELS, found_share, street_batch, without_boxes
from tests.helpers.distributed import run_distributed
from tests.helpers.learning import assert_mean_of_ranks

every_detector = pytest.mark.parametrize("name", TINY)
ODD = (
    "no boxes",
    "one sample without boxes",
    "no points",
    "nothing",
    "boxes without points",
    "boxes outside the range",
)
"""Batches; the loader gives boxes without points (`data.boxes.min_points` 0), and none outside the range."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def batch_for(name: str, samples: tuple[tuple[int, int], ...] = ((0, 0), (0, 5))) -> Batch:
    return street_batch(samples, images=TINY[name].batch_spec().images)


def build(name: str) -> Detector:
    torch.manual_seed(0)
    return TINY[name].build()


def without_points(batch: Batch) -> Batch:
    return dataclasses.replace(
        batch,
        points=batch.points[:0],
        point_sample=batch.point_sample[:0],
        point_voxel=batch.point_voxel[:0],
        voxel_coords=batch.voxel_coords[:0],
        voxel_features=batch.voxel_features[:0],
        pairs=None if batch.pairs is None else batch.pairs.select(slice(0)),
    )


def with_boxes_at(batch: Batch, shift_m: tuple[float, float, float]) -> Batch:
    assert batch.boxes is not None
    moved = batch.boxes.boxes.clone()
    moved[:, :3] += torch.tensor(shift_m)
    return dataclasses.replace(batch, boxes=dataclasses.replace(batch.boxes, boxes=moved))


def check_step(model: nn.Module, batch: Batch) -> LossTerms:
    model.zero_grad(set_to_none=True)
    terms: LossTerms = model(batch)
    assert terms.total.isfinite()
    assert terms.total.dtype == torch.float32
    torch.testing.assert_close(sum(terms.parts.values()), terms.total.detach())
    assert not any(part.requires_grad for part in (*terms.parts.values(), *terms.watch.values()))
    terms.total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient: other ranks would wait for it"
        assert parameter.grad.isfinite().all(), name
    return terms


def check_detections(found: Detections, batch: Batch) -> None:
    assert (found.sample.diff() >= 0).all()
    same = found.sample.diff() == 0
    assert (found.scores.diff()[same] <= 0).all()
    assert found.boxes.isfinite().all()
    assert ((found.classes >= 0) & (found.classes < len(CLASSES))).all()
    assert found.sample.max() < batch.num_samples if len(found.sample) else True


def test_registry() -> None:
    assert {type(config) for config in TINY.values()} == set(DETECTORS.values())
    for kind in DETECTORS.values():
        assert kind().batch_spec().boxes == kind().classes


@every_detector
def test_it_learns_from_street_sweeps_and_detects(name: str) -> None:
    """A few updates lower the loss; the same seed gives the same numbers; what is found has the promised order."""
    batch = batch_for(name)
    again = check_step(build(name).train(), batch).total.detach()
    model = build(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    reached: set[str] = set()
    losses = []
    for _ in range(3):
        losses.append(check_step(model, batch).total.detach())
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
        optimizer.step()
    # A second stage corrects boxes once a proposal overlaps one: learnt by heart in `test_two_stages`.
    later = {n for n, _ in model.named_parameters() if n.startswith("refiner.branches.box.")}
    assert reached | later == {n for n, _ in model.named_parameters()}
    assert torch.equal(losses[0], again)
    assert losses[-1] < losses[0]
    model.eval()
    model.nms = dataclasses.replace(model.nms, min_score=0.0)
    state = {n: value.clone() for n, value in model.state_dict().items()}
    with torch.no_grad():
        found = model.detect(batch)
    check_detections(found, batch)
    assert set(found.sample.tolist()) == {0, 1}
    assert all(torch.equal(value, state[n]) for n, value in model.state_dict().items())
    assert found.velocities_mps.isnan().all()


@every_detector
@pytest.mark.parametrize("case", ODD)
def test_odd_batches_train_and_are_looked_at(name: str, case: str) -> None:
    batch = batch_for(name)
    if case in ("no boxes", "nothing"):
        batch = without_boxes(batch)
    if case == "one sample without boxes":
        batch = without_boxes(batch, 1)
    if case in ("no points", "nothing"):
        batch = without_points(batch)
    if case in ("boxes without points", "boxes outside the range"):
        batch = with_boxes_at(batch, (0.0, 0.0, 60.0) if case == "boxes without points" else (1000.0, 0.0, 0.0))
    model = build(name)
    terms = check_step(model, batch)
    # PointRCNN's boxes are those of points.
    nothing_to_find = {"no boxes", "nothing"}
    if name == "point_rcnn":
        nothing_to_find |= {"no points", "boxes without points", "boxes outside the range"}
    # VoteNet's boxes draw the nearest proposal, if there is one.
    if name == "vote_net":
        nothing_to_find |= {"no points"}
    # Anchors stand within the range; a heat map has such a centre on its rim.
    elif not name.startswith("centerpoint"):
        nothing_to_find |= {"boxes outside the range"}
    # Above all images; and 1 km ahead, which is far, but no other place in them.
    if name == "fcos3d":
        nothing_to_find = {"no boxes", "nothing", "boxes without points"}
    assert (terms.parts["box"] == 0) == (case in nothing_to_find)
    with torch.no_grad():
        found = model.eval().detect(batch)
    check_detections(found, batch)


@pytest.mark.parametrize(
    "name", ["pointpillars", "centerpoint_pillars", "pv_rcnn", "point_rcnn", "fcos3d", "vote_net", "mvx_net"]
)
def test_heads_compute_in_float32_under_autocast(name: str) -> None:
    batch, model = batch_for(name), build(name)
    plain = float(check_step(model, batch).total.detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        short = check_step(build(name), batch)
    assert float(short.total.detach()) == pytest.approx(plain, rel=0.2)


@pytest.mark.parametrize(
    "name", ["pointpillars", "centerpoint_pillars", "pv_rcnn", "point_rcnn", "fcos3d", "vote_net", "mvx_net"]
)
def test_diverged_weights_give_a_loss_and_no_detections(name: str) -> None:
    """The engine skips and counts such updates by their loss; an error on the way would end the run instead."""
    model, batch = build(name), batch_for(name)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    assert model(batch).total.isnan()
    with torch.no_grad():
        assert len(model.eval().detect(batch).scores) == 0


@pytest.mark.parametrize(
    "name", ["pointpillars", "centerpoint_pillars", "pv_rcnn", "point_rcnn", "fcos3d", "vote_net", "mvx_net"]
)
def test_the_samples_of_a_batch_do_not_meet(name: str) -> None:
    """In evaluation mode each sample is what it is alone."""
    model, both = build(name).eval(), batch_for(name)
    model.nms = dataclasses.replace(model.nms, min_score=0.0, num_after=20)
    with torch.no_grad():
        found = model.detect(both)
        alone: list[Tensor] = [model.detect(batch_for(name, (key,))).boxes for key in ((0, 0), (0, 5))]
    for sample, boxes in enumerate(alone):
        torch.testing.assert_close(found.boxes[found.sample == sample], boxes, rtol=1e-4, atol=1e-4)


def test_a_batch_without_boxes_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="SECOND needs labelled boxes"):
        build("pointpillars")(dataclasses.replace(street_batch(), boxes=None))


def test_settings_that_do_not_fit_are_refused() -> None:
    tiny = TINY["second"]
    assert isinstance(tiny, SecondConfig)
    with pytest.raises(ValueError, match="backbone: got res16unet, expected a network with a bird's-eye view"):
        dataclasses.replace(tiny, backbone=Res16UNetConfig())
    with pytest.raises(ValueError, match=r"backbone.voxel_size_m: got None, expected the edges of a cell"):
        dataclasses.replace(tiny, backbone=VoxelNetConfig())
    with pytest.raises(ValueError, match=r"classes: got .*, expected no entry twice"):
        dataclasses.replace(tiny, classes=("car", "car"))
    with pytest.raises(ValueError, match=r"classes: got .*, expected at least one name"):
        dataclasses.replace(tiny, classes=())
    with pytest.raises(ValueError, match=r"for the class 'Pedestrain', .*cyclist; did you mean 'pedestrian'\?"):
        dataclasses.replace(tiny, classes=("Pedestrain",))
    with pytest.raises(ValueError, match="'street' has no anchors for the class 'tram', only for car, truck"):
        dataclasses.replace(tiny, classes=("car", "tram"))
    head = dataclasses.replace(tiny.head, anchors=tiny.head.of_classes(("car",)))
    with pytest.raises(ValueError, match=r"anchors: got .*, expected 5 entries, one for each class"):
        dataclasses.replace(tiny, head=head)
    centre = CenterPointConfig()
    with pytest.raises(ValueError, match=r"groups: got .*, expected each of the classes car, pedestrian, cyclist once"):
        dataclasses.replace(centre, head=dataclasses.replace(centre.head, groups=(("car",), ("car", "cyclist"))))


def test_voxels_of_another_size_than_the_heads_are_refused() -> None:
    tower = TINY["second"].backbone  # type: ignore[attr-defined]
    tower.check_voxels(VOXELS)
    other: VoxelConfig = dataclasses.replace(VOXELS, size=(0.2, 0.2, 0.1))
    with pytest.raises(ValueError, match=r"voxel_size_m is \[0.2, 0.2, 0.2\], but data.voxel.size=\[0.2, 0.2, 0.1\]"):
        tower.check_voxels(other)


def test_names_of_the_network_are_those_of_pre_training() -> None:
    """A detector takes over `backbone` or `image_backbone` as it is; its heads have names of their own."""
    heads = {"pv_rcnn": {"dense_head", "set_abstraction", "keypoint_head", "refiner"}}
    heads |= {"point_rcnn": {"point_class", "point_box", "refiner"}, "fcos3d": {"pyramid", "dense_head"}}
    heads |= {"vote_net": {"seed", "voting", "gathering", "head"}}
    heads |= {"mvx_net": {"voxel_encoder", "dense_head"}}
    for name, config in TINY.items():
        model = config.build()
        own = {n.partition(".")[0] for n, _ in model.named_parameters()}
        towers = [tower for tower in TOWERS if config.tower(tower) is not None]
        assert own == {*towers, *heads.get(name, {"dense_head"})}
        for tower in towers:
            alone = config.tower(tower).build()  # type: ignore[union-attr]
            assert set(model.get_submodule(tower).state_dict()) == set(alone.state_dict())


def _loss_and_gradients(name: str, samples: tuple[tuple[int, int], ...]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """With the running statistics of BatchNorm: what a synchronised one does is tested with it."""
    torch.set_num_threads(1)
    model = build(name).eval()
    total = model(batch_for(name, samples)).total
    total.backward()
    return total.detach(), {n: p.grad for n, p in model.named_parameters()}


def _of_rank(rank: int, world_size: int, name: str) -> tuple[Tensor, dict[str, Tensor | None]]:
    return _loss_and_gradients(name, (SAMPLES[rank],))


SAMPLES = ((0, 0), (1, 3))
"""Of 16 and 6 boxes."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pointpillars", "centerpoint_pillars", "fcos3d", "vote_net", "mvx_net"])
def test_two_processes_equal_one_with_both_samples(name: str) -> None:
    ranks = run_distributed(_of_rank, 2, name)
    assert_mean_of_ranks(ranks, _loss_and_gradients(name, SAMPLES), loss=(1e-5, 1e-6), gradient=(1e-3, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lr", "steps"), [("pointpillars", 3e-3, 60), ("centerpoint_pillars", 5e-3, 100)])
def test_four_sweeps_can_be_learnt_by_heart(name: str, lr: float, steps: int) -> None:
    batch = street_batch(((0, 0), (1, 3), (2, 2), (3, 2)))  # no two centres in one cell
    assert batch.boxes is not None
    model = build(name).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1.0, 2 * (steps - step) / steps)
        optimizer.zero_grad()
        model(batch).total.backward()
        optimizer.step()
    with torch.no_grad():
        found = model.eval().detect(batch)
    assert found_share(found, batch.boxes) == 1
