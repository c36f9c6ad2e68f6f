"""The registration protocol: find each camera's pose from its image and a sweep that was turned and moved.

The whole objective is measured, not a tower: both networks and what joins them. Nothing is trained. Every
initialisation sees the same sweeps with the same perturbations, a function of the seed and the sweep alone.

The matching error comes in four variants: best cell or soft match, over all points that the image truly shows or over
those of them that the method keeps; and so does the share of matches within `MATCH_LIMIT_PX`. Table X of the NCLR paper
(mean error and that share) has hard and soft matches of two runs: `method.alignment=identity` ("Cosine") and
`method.alignment=learnable` ("Learnable").

Letters: I images, Q points that were looked at.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from common.ranges import at_least, at_most, below, positive
from engine.downstream.common import ProgressMeter, Samples, UnsuitableError, check_seeds
from engine.downstream.pose_errors import PoseErrors, mean_or_nan, pose_errors, summarise
from engine.downstream.runner import Initialisation, Job, Measured, Parts
from engine.interfaces import CalibratedBatch, CamerasLike, EstimatesPose, PoseEstimateLike

MATCH_LIMIT_PX = 5.0
"""A match is right below this distance from the true pixel. Source: NCLR, table X ("Acc.")."""
MAIN_METRIC = "rre_median"
"""Median over all images, 180 degrees where no pose was found: always defined, and no single failure moves it."""


@dataclass(frozen=True, kw_only=True)
class RegistrationConfig:
    """Settings of the registration protocol.

    Attributes:
        seeds: of the perturbations; the r-th is measured on network r modulo their number.
        max_rotation_deg: the sweep is turned about z by up to so much either way (NCLR: 180).
        translate_m: and moved by up to so much along x, y and z either way, before (NCLR: 15, 15, 0).
        cameras_per_sample: cameras of each sweep that are registered, drawn at random; null: all.
        solver: "network": the pose that the method gives; "ransac": from the same kept soft matches by EPnP in a
            RANSAC, as the literature solves it.
        ransac_trials: of "ransac".
        ransac_px: matches closer than this to a trial's projection are its inliers.
    """

    seeds: tuple[int, ...] = (0,)
    max_rotation_deg: float = 180.0
    translate_m: tuple[float, float, float] = (15.0, 15.0, 0.0)
    cameras_per_sample: int | None = 1
    solver: Literal["network", "ransac"] = "network"
    ransac_trials: int = 500
    ransac_px: float = 8.0

    def __post_init__(self) -> None:
        check_seeds(self, "seeds")
        positive(self, "max_rotation_deg", "ransac_px")
        at_most(self, max_rotation_deg=180)
        at_least(self, "metres", translate_m=0)
        below(self, "metres", translate_m=math.inf)
        at_least(self, "null: all", cameras_per_sample=1)
        at_least(self, ransac_trials=1)


@dataclass(frozen=True, kw_only=True)
class Registered:
    """What one network did on all images of one seed.

    Attributes:
        errors: of the poses.
        soft_px: distance of each truly seen point's soft match from its true pixel.
        hard_px: of its best cell.
        kept: whether the method kept it.
        false_kept: points that it kept although the image does not show them.
    """

    errors: PoseErrors
    soft_px: Float64[Tensor, " S"]
    hard_px: Float64[Tensor, " S"]
    kept: Bool[Tensor, " S"]
    false_kept: int

    def metrics(self) -> dict[str, float | None]:
        """By the names of `engine.downstream.metrics`; None where something is not defined."""
        known = int(self.kept.sum())
        values = {
            MAIN_METRIC: _median(self.errors.rre_deg.clamp(max=180.0)),
            "rte_median": _median(self.errors.rte_m),
            **summarise(self.errors),
            **_matching("match_soft", self.soft_px, self.kept),
            **_matching("match_hard", self.hard_px, self.kept),
            "overlap_precision": 100 * known / max(known + self.false_kept, 1) if known + self.false_kept else math.nan,
            "overlap_recall": 100 * mean_or_nan(self.kept.double()),
        }
        return {name: value if math.isfinite(value) else None for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class PoseParts(Parts[CalibratedBatch]):
    """What the registration protocol needs; `read` perturbs clouds, a function of the seed and the sweep alone.

    Attributes:
        keep: called with initialisation, seed and figures of each pass (for curves).
    """

    keep: Callable[[str, int, Registered], None] | None = None

    def calibration(self, indices: Sequence[int]) -> Iterable[CalibratedBatch]:
        """Perturbed, as the test sweeps are."""
        return self.read(Samples(indices, truth="pose", seed=_CALIBRATION_SEED))

    def run(self, network: nn.Module, batch: Any) -> object:
        """Find the poses of the batch; nothing where the objective finds none, which `register` refuses."""
        return network.estimate_pose(batch) if isinstance(network, EstimatesPose) else None


_CALIBRATION_SEED = 1_000_003
"""Perturbations of the train sweeps that BatchNorm statistics come from; no seed of a protocol."""


def measure_registration(
    job: Job[PoseParts], init: Initialisation, names: Sequence[str], meter: ProgressMeter
) -> dict[str, Measured]:
    """The measuring function of "registration"."""
    (name,) = names
    config, test = job.section(name), job.splits.test.tolist()
    columns = []
    for number, seed in enumerate(config.seeds):
        done = register(
            job.prepared(init, number % len(init.networks)),
            job.parts.read(Samples(test, truth="pose", seed=seed)),
            config,
            device=job.device,
            on_sweeps=lambda n: meter.advance(n, f"{init.name}: registration"),
        )
        columns.append(done.metrics())
        if job.parts.keep is not None:
            job.parts.keep(init.name, seed, done)
    return {name: Measured(metrics={key: tuple(column[key] for column in columns) for key in columns[0]})}


def registration_work(job: Job[PoseParts], init: Initialisation, names: Sequence[str]) -> int:
    """Work of `measure_registration`."""
    return sum(len(job.section(name).seeds) * len(job.splits.test) for name in names)


def described_registration(job: Job[PoseParts], name: str) -> tuple[dict[str, Any], list[Any]]:
    """See `engine.downstream.runner.described`; of the train split only the calibration's sweeps matter here."""
    settings = {key: value for key, value in dataclasses.asdict(job.section(name)).items() if key != "seeds"}
    settings |= {"calibration_sweeps": len(job.calibration()), "test_sweeps": len(job.splits.test)}
    return settings, [job.dataset, job.splits.test.tolist()]


def register(
    objective: nn.Module,
    batches: Iterable[CalibratedBatch],
    config: RegistrationConfig,
    *,
    device: torch.device | str = "cpu",
    on_sweeps: Callable[[int], None] = lambda n: None,
) -> Registered:
    """One pass of an objective, in evaluation mode on the device, over sweeps whose clouds are perturbed.

    Raises:
        UnsuitableError: the objective finds no poses, the batches are not calibrated, or there is no image.
    """
    if not isinstance(objective, EstimatesPose):
        raise UnsuitableError(
            f"{type(objective).__name__} has no estimate_pose: the registration protocol measures methods that find "
            "the pose between camera and LiDAR, such as nclr"
        )
    poses: list[tuple[Tensor, Tensor, Tensor]] = []
    matches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for batch in batches:
        there = batch.to(device)
        if there.images is None or there.cameras is None:
            raise UnsuitableError(
                f"sweeps {', '.join(batch.keys[:3])} have no calibration; registration needs the true pose"
            )
        cameras, (height, width) = there.cameras, there.images.shape[-2:]
        found = objective.estimate_pose(there)
        T, valid = (found.T_cam_points, found.valid) if config.solver == "network" else _ransac(cameras, found, config)
        poses.append((T.double().cpu(), valid.cpu(), cameras.T_cam_points.double().cpu()))
        matches.append(_matched(cameras, (height, width), found))
        on_sweeps(batch.num_samples)
    if not poses:
        raise UnsuitableError("no sweep to register: the test split is empty")
    T, valid, true = (torch.cat(parts) for parts in zip(*poses, strict=True))
    soft, hard, kept, false_kept = (torch.cat(parts) for parts in zip(*matches, strict=True))
    errors = pose_errors(T, true, valid)
    return Registered(errors=errors, soft_px=soft, hard_px=hard, kept=kept, false_kept=int(false_kept.sum()))


def _matched(
    cameras: CamerasLike, size: tuple[int, int], found: PoseEstimateLike
) -> tuple[Float64[Tensor, " S"], Float64[Tensor, " S"], Bool[Tensor, " S"], Bool[Tensor, " Q"]]:
    """Matching errors in images of height and width `size`.

    Returns:
        Soft and hard error of the points that the images truly show; which of them were kept; of all points, which
        were kept although no image shows them.
    """
    true, seen = _true_pixels(cameras, size, found)
    soft, hard = ((uv.double() - true).norm(dim=1)[seen].cpu() for uv in (found.match_soft_uv, found.match_hard_uv))
    return soft, hard, found.match_kept[seen].cpu(), (found.match_kept & ~seen).cpu()


def _true_pixels(
    cameras: CamerasLike, size: tuple[int, int], found: PoseEstimateLike
) -> tuple[Float64[Tensor, "Q 2"], Bool[Tensor, " Q"]]:
    """Pixel of each point by the true pose, and whether that is inside of its image."""
    K, T = cameras.K.double()[found.match_image], cameras.T_cam_points.double()[found.match_image]
    camera = torch.einsum("qij,qj->qi", T[:, :3, :3], found.match_points.double()) + T[:, :3, 3]
    depth = camera[:, 2:].clamp(min=1e-6)
    uv = torch.einsum("qij,qj->qi", K, camera)[:, :2] / depth
    height, width = size
    inside = (uv >= 0).all(dim=1) & (uv <= uv.new_tensor([width - 1, height - 1])).all(dim=1)
    return uv, inside & (camera[:, 2] > cameras.min_depth_m[found.match_image])


def _ransac(
    cameras: CamerasLike, found: PoseEstimateLike, config: RegistrationConfig
) -> tuple[Float64[Tensor, "I 4 4"], Bool[Tensor, " I"]]:
    """Poses from the kept soft matches by OpenCV, whose draws are the same in every call."""
    T = torch.eye(4, dtype=torch.float64).repeat(len(found.valid), 1, 1)
    valid = torch.zeros(len(T), dtype=torch.bool)
    for image in range(len(T)):
        mine = (found.match_image == image) & found.match_kept
        points, pixels = (x[mine].double().cpu().numpy() for x in (found.match_points, found.match_soft_uv))
        solved = solve_ransac(points, pixels, cameras.K[image].double().cpu().numpy(), config)
        if solved is not None:
            T[image], valid[image] = torch.from_numpy(solved), True
    return T, valid


def solve_ransac(
    points: Float[np.ndarray, "P 3"],
    pixels_uv: Float[np.ndarray, "P 2"],
    K: Float[np.ndarray, "3 3"],
    config: RegistrationConfig,
) -> Float[np.ndarray, "4 4"] | None:
    """Pose with the most inliers; None where fewer than 6 matches, or no pose, are found.

    Source: Fischler and Bolles (1981), with EPnP inside as in DeepI2P and CorrI2P.
    """
    if len(points) < 6:
        return None
    done, turn, shift, _ = cv2.solvePnPRansac(
        points,
        pixels_uv,
        K,
        None,
        flags=cv2.SOLVEPNP_EPNP,
        iterationsCount=config.ransac_trials,
        reprojectionError=config.ransac_px,
    )
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = cv2.Rodrigues(turn)[0], shift[:, 0]
    return T if done and np.isfinite(T).all() else None


def _matching(name: str, errors_px: Float64[Tensor, " S"], kept: Bool[Tensor, " S"]) -> dict[str, float]:
    """Mean error and share below the limit (percent), over all points and over the kept ones."""
    right = 100 * (errors_px < MATCH_LIMIT_PX).double()
    return {
        name: mean_or_nan(errors_px),
        f"{name}_kept": mean_or_nan(errors_px[kept]),
        f"{name}_right": mean_or_nan(right),
        f"{name}_right_kept": mean_or_nan(right[kept]),
    }


def _median(values: Float64[Tensor, " n"]) -> float:
    """Infinite where half of the values are."""
    # Not `quantile`, which interpolates between infinities to NaN.
    middle = values.sort().values[(len(values) - 1) // 2 :][: 2 - len(values) % 2]
    return mean_or_nan(middle)
