"""The registration protocol on objectives whose answers are known."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from data.sample import Batch
from engine.downstream.common import Samples, Splits
from engine.downstream.metrics import METRICS
from engine.downstream.protocols import ProtocolsConfig, of_tower
from engine.downstream.registration import (
    MAIN_METRIC,
    PoseParts,
    Registered,
    RegistrationConfig,
    register,
    solve_ransac,
)
from engine.downstream.results import Result
from engine.downstream.runner import Initialisation, Job, measure
from models.pose.alignment import PoseEstimate
from tests.helpers.toy_batches import toy_batch


class Oracle(nn.Module):
    """Matches that are right but for a shift, a pose that is right but for a turn, or none."""

    def __init__(self, *, shift_px: float = 0.0, turn_deg: float = 0.0, found: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.shift_px, self.turn_deg, self.found = shift_px, turn_deg, found

    def estimate_pose(self, batch: Batch) -> PoseEstimate:
        """For every point of the sample."""
        assert batch.cameras is not None
        assert batch.cameras is not None
        assert batch.cameras is not None
        self.norm(batch.points)
        turn = torch.eye(4)
        turn[:3, :3] = torch.from_numpy(Rotation.from_euler("z", self.turn_deg, degrees=True).as_matrix())
        image, points = [], []
        for i, sample in enumerate(batch.cameras.sample.tolist()):
            mine = batch.points[batch.point_sample == sample]
            points.append(mine)
            image.append(torch.full((len(mine),), i))
        where, all_points = torch.cat(image), torch.cat(points)
        camera = torch.einsum("qij,qj->qi", batch.cameras.T_cam_points[where, :3, :3], all_points)
        camera = camera + batch.cameras.T_cam_points[where, :3, 3]
        uv = torch.einsum("qij,qj->qi", batch.cameras.K[where], camera)
        uv = uv[:, :2] / uv[:, 2:]
        moved = uv + torch.tensor([self.shift_px, 0.0])
        return PoseEstimate(
            T_cam_points=batch.cameras.T_cam_points @ turn,
            valid=torch.full((len(batch.cameras.K),), self.found),
            match_image=where,
            match_points=all_points,
            match_soft_uv=moved,
            match_hard_uv=moved + torch.tensor([0.0, 4.0]),
            match_kept=torch.arange(len(uv)) % 2 == 0,
        )


SWEEPS = Splits(train=np.array([2, 3]), train_logs=np.array([0, 1]), test=np.array([0, 1]))


def read(samples: Samples) -> list[Batch]:
    """Toy sweeps, one camera each, the same for each seed."""
    return [toy_batch([n], images_each=1, calibration=True) for n in samples.indices]


TEST = read(Samples([0, 1], truth="pose"))


def run(
    inits: list[Initialisation],
    config: RegistrationConfig = RegistrationConfig(),  # noqa: B008
    *,
    calibration_sweeps: int = 1,
    known: Sequence[Result] = (),
    progress: Callable[[float, str], None] | None = None,
    keep: Callable[[str, int, Registered], None] | None = None,
) -> list[Result]:
    job = Job(
        protocols=of_tower(["registration"], "objective"),
        parts=PoseParts(read=read, keep=keep),
        splits=SWEEPS,
        dataset="toy",
        classes=None,
        config=ProtocolsConfig(protocols=("registration",), registration=config, calibration_sweeps=calibration_sweeps),
    )
    return list(measure(inits, job, known=known, progress=progress))


def test_known_errors():
    done = register(Oracle(shift_px=3.0, turn_deg=4.0), TEST, RegistrationConfig()).metrics()
    assert done[MAIN_METRIC] == pytest.approx(4.0, abs=1e-3)
    assert done["rre_euler"] == pytest.approx(4.0, abs=1e-3)
    assert done["rte_median"] == pytest.approx(0.0, abs=1e-5)
    assert done["recall"] == done["found"] == 100.0
    assert (done["match_soft"], done["match_soft_kept"]) == pytest.approx((3.0, 3.0), abs=1e-3)
    assert done["match_hard"] == pytest.approx(5.0, abs=1e-3)
    assert done["match_soft_right"] == done["match_soft_right_kept"] == 100.0
    far = register(Oracle(shift_px=3.1), TEST, RegistrationConfig()).metrics()  # the best cell is 5.06 px off
    assert (far["match_soft_right"], far["match_hard_right"], far["match_hard_right_kept"]) == (100.0, 0.0, 0.0)
    assert done["overlap_precision"] == 100.0
    assert done["overlap_recall"] == pytest.approx(50.0, abs=2.0)


def test_no_pose_is_the_worst_pose():
    done = register(Oracle(found=False), TEST, RegistrationConfig()).metrics()
    assert done[MAIN_METRIC] == 180.0
    assert done["recall"] == done["found"] == 0.0
    assert done["rte_median"] is None
    assert done["rre"] is None


def test_ransac_finds_the_pose_among_wrong_matches():
    done = register(Oracle(turn_deg=90.0), TEST, RegistrationConfig(solver="ransac")).metrics()
    assert done[MAIN_METRIC] == pytest.approx(0.0, abs=0.05)  # from the matches, whatever the network says
    rng = np.random.default_rng(0)
    K = np.array([[400.0, 0, 320], [0, 400.0, 120], [0, 0, 1]])
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.random(rng=0).as_matrix(), (1.0, 2.0, 3.0)
    camera = rng.uniform((-5, -2, 5), (5, 2, 40), (100, 3))
    uv = camera @ K.T
    uv = uv[:, :2] / uv[:, 2:]
    uv[:40] = rng.uniform(0, 300, (40, 2))
    found = solve_ransac((camera - T[:3, 3]) @ T[:3, :3], uv, K, RegistrationConfig())
    np.testing.assert_allclose(found, T, atol=1e-4)


@pytest.mark.parametrize("kind", ["few", "one point", "one pixel", "line"])
def test_ransac_on_degenerate_matches_gives_nothing_or_finite_numbers(kind: str):
    rng = np.random.default_rng(1)
    points, uv = rng.normal(size=(20, 3)) * 5, rng.uniform(0, 300, (20, 2))
    if kind == "few":
        points, uv = points[:5], uv[:5]
    elif kind == "one point":
        points[:] = points[0]
    elif kind == "one pixel":
        uv[:] = uv[0]
    else:
        points[:, 1:] = 0
    found = solve_ransac(points, uv, np.diag([400.0, 400.0, 1.0]), RegistrationConfig())
    assert found is None or np.isfinite(found).all()


def test_records_of_several_seeds_and_networks():
    config = RegistrationConfig(seeds=(0, 1, 2))
    seen: list[tuple[str, int, int]] = []
    inits = [
        Initialisation(
            name="good", pretrained=True, networks=(lambda: Oracle(turn_deg=1.0), lambda: Oracle(turn_deg=2.0))
        ),
        Initialisation(name="random", pretrained=False, networks=(lambda: Oracle(found=False),)),
    ]
    told: list[float] = []
    results = run(
        inits,
        config,
        progress=lambda share, text: told.append(share),
        keep=lambda name, seed, done: seen.append((name, seed, len(done.errors.rte_m))),
    )
    assert [r.init for r in results] == ["good", "random"]
    assert results[0].values == pytest.approx((1.0, 2.0, 1.0), abs=1e-3)
    assert results[1].values == (180.0, 180.0, 180.0)
    assert results[0].goodness > results[1].goodness
    assert set(results[0].metrics) <= set(METRICS)
    assert seen[0] == ("good", 0, 2)
    assert len(seen) == 6
    assert told[-1] == 1.0
    assert run(inits, config, known=results) == results


def test_batch_norm_is_calibrated_on_the_train_sweeps():
    made: list[Oracle] = []

    def build() -> Oracle:
        made.append(Oracle())
        return made[-1]

    init = Initialisation(name="random", pretrained=False, networks=(build,))
    run([init])
    mean: Tensor = read(Samples([2], truth="pose"))[0].points.mean(dim=0)
    torch.testing.assert_close(made[0].norm.running_mean, mean)
    run([init], calibration_sweeps=0)  # left alone: those of the network as it was built
    torch.testing.assert_close(made[1].norm.running_mean, torch.zeros(3))
    assert int(made[1].norm.num_batches_tracked) == 0


def test_refused():
    with pytest.raises(ValueError, match="Linear has no estimate_pose"):
        register(nn.Linear(1, 1), TEST, RegistrationConfig())
    with pytest.raises(ValueError, match="test split is empty"):
        register(Oracle(), [], RegistrationConfig())
    for settings in (
        {"seeds": ()},
        {"max_rotation_deg": 200.0},
        {"translate_m": (math.inf, 0.0, 0.0)},
        {"cameras_per_sample": 0},
        {"ransac_trials": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            RegistrationConfig(**settings)
    blind = dataclasses.replace(TEST[0], cameras=None)
    with pytest.raises(ValueError, match="sample-000 have no calibration"):
        register(Oracle(), [blind], RegistrationConfig())
