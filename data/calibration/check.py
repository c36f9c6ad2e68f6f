"""Does the sweep lie where the images say? Borders of objects over edges of images, also with the projection shifted.

For each camera the mean edge strength under the projected depth borders (`data.calibration.depth_edges`) is
accumulated over many samples, for the projection as it is and for every shift of up to `reach_px` in u and v. Where
another shift fits clearly better, the camera's calibration (or its times) is wrong by about that much. Where ego
motion is known, the same is asked of the image's time: a wrong time moves near objects more than far ones, which no
shift imitates.

How sure that is comes from resampling: images are cut into strips, and strips of all samples are drawn again and again.
Near-coincidences of a few edges differ from draw to draw, a true shift does not. Sparse beams leave it open where
between two of them a border lies: half that gap is the tolerance below which nothing is said.

A rotation of the camera about its vertical axis shows as a shift in u, one about its sideways axis as a shift in v, by
focal length times angle; a roll is not looked for.

Source: Levinson, Thrun: Automatic Online Calibration of Cameras and Lasers (RSS 2013), sections III and IV: the sum of
edge strengths under depth jumps, compared with that of displaced calibrations. Deviations:
`data.calibration.depth_edges`; shifts in the image instead of six parameters; resampling instead of the share of
displacements that fit worse.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Float32, Int
from scipy.spatial.transform import Rotation

from data.calibration.depth_edges import DepthEdges, depth_edges, edge_strength
from data.calibration.heading import Heading, troubles
from data.geometry import project, rigid, transform
from data.sample import CameraView, Sample


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """How a calibration is looked at; pixels are those of images shrunk to at most `max_width`.

    Attributes:
        max_width: wider images are shrunk by a whole factor.
        reach_px: largest shift that is tried.
        coarse_px: step of the shift in the other direction that goes with each.
        time_reach_ms: largest error of an image's time that is tried.
        time_step_ms: its step.
        least_time_ms: smaller errors of time are not reported.
        least_speed_mps: slower samples say nothing about times.
        min_edges: fewer borders leave a camera undecided.
        draws: resamplings.
        min_sure: share of draws that must agree on a shift beyond the tolerance before it is reported.
        min_gain: by how many of its standard errors the score must rise.
        min_settled: share of draws that must lie within the tolerance before a camera is said to fit.
    """

    max_width: int = 1280
    reach_px: int = 20
    coarse_px: int = 5
    time_reach_ms: float = 100.0
    time_step_ms: float = 10.0
    least_time_ms: float = 15.0
    least_speed_mps: float = 2.0
    min_edges: int = 100
    draws: int = 200
    min_sure: float = 0.99
    min_gain: float = 4.0
    min_settled: float = 0.9


@dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """Ego motion around a sample, taken as constant.

    Attributes:
        turn_rad: rotation vector a second, ego frame.
        velocity_mps: ego frame.
    """

    turn_rad: Float[np.ndarray, " 3"]
    velocity_mps: Float[np.ndarray, " 3"]

    def over(self, seconds: float) -> Float[np.ndarray, "4 4"]:
        """The ego frame after this time, in the ego frame now."""
        return rigid(Rotation.from_rotvec(self.turn_rad * seconds).as_matrix(), self.velocity_mps * seconds)


def motion_between(before: Sample, after: Sample, longest_s: float = 2.5) -> Motion | None:
    """Motion from two samples of a log; None where they are too far apart or have no times."""
    seconds = (after.timestamp_us - before.timestamp_us) / 1e6
    if not 0 < seconds <= longest_s:
        return None
    step = np.linalg.inv(before.T_world_ego) @ after.T_world_ego
    turn = Rotation.from_matrix(step[:3, :3]).as_rotvec()
    return Motion(turn_rad=turn / seconds, velocity_mps=step[:3, 3] / seconds)


def projected_edges(
    sample: Sample, camera: CameraView, margin_px: float = 40.0
) -> tuple[Float[np.ndarray, "edges 2"], DepthEdges]:
    """The borders that project into an image as stored or near it, and their pixels there.

    Borders of what the camera does not look at are not made.
    """
    T_cam_lidar = sample.T_cam_lidar(camera)
    inside = _near_image(camera, *project(camera.K, transform(T_cam_lidar, sample.points_lidar)), margin_px)
    edges = depth_edges(sample.points_lidar[inside])
    uv, depth = project(camera.K, transform(T_cam_lidar, edges.points_lidar))
    near = _near_image(camera, uv, depth, margin_px)
    edges = DepthEdges(points_lidar=edges.points_lidar[near], gaps_rad=edges.gaps_rad[near], top=edges.top[near])
    return uv[near], edges


def _near_image(
    camera: CameraView, uv: Float[np.ndarray, "n 2"], depth: Float[np.ndarray, " n"], margin_px: float
) -> np.ndarray:
    height, width = camera.image_size
    with np.errstate(invalid="ignore"):
        near = ((uv > -margin_px) & (uv < np.array([width, height]) + margin_px)).all(axis=1)
    return np.asarray(near & (depth > camera.min_depth_m))


# ---- verdicts
@dataclass(frozen=True, kw_only=True)
class CalibrationVerdict:
    """What many samples say about one camera; pixels are those of the stored image.

    Attributes:
        camera: name.
        status: "fits", "shift", "time", "heading" (a time, but the vehicle does not drive the way that it looks, so
            nothing is said about times) or "undecided".
        num_samples: that had this camera.
        num_edges: borders at the side of objects, and on top.
        score: mean edge strength under the borders as projected; 1 is the image's own mean.
        best_score: at the best shift.
        background: at shifts in general (median): what borders that hit nothing get.
        shift_px: by how much the projected points should move in u and v to fit best.
        shift_error_px: standard error of that.
        tolerance_px: smaller shifts cannot be distinguished from none.
        sure: share of resamplings in which the shift is beyond the tolerance, the same way.
        time_offset_ms: how much later than stated the image seems to be taken; None where motion is not known.
        time_sure: as `sure`, of the time.
        heading: what is wrong with the vehicle's direction of travel, of which logs; "" where nothing is.
    """

    camera: str
    status: str
    num_samples: int
    num_edges: tuple[int, int]
    score: float
    best_score: float
    background: float
    shift_px: tuple[float, float]
    shift_error_px: tuple[float, float]
    tolerance_px: tuple[float, float]
    sure: float
    time_offset_ms: float | None = None
    time_sure: float = 0.0
    heading: str = ""

    def message(self) -> str:
        """The verdict in one line, with what to do where it is open."""
        edges = f"{sum(self.num_edges)} borders in {self.num_samples} samples"
        if self.status == "undecided":
            best = [f"{s:+.1f} ± {e:.1f}" for s, e in zip(self.shift_px, self.shift_error_px, strict=True)]
            return (
                f"{self.camera}: not told, the best shift is u {best[0]}, v {best[1]} px ({edges}); give more samples, "
                "of places with poles and cars"
            )
        if self.status == "fits":
            within = "{:.1f} px in u, {:.1f} px in v".format(*self.tolerance_px)
            but = f"; {self.heading}; or it really drove so" if self.heading else ""
            return f"{self.camera}: fits within {within}, score {self.score:.2f} ({edges}){but}"
        if self.status == "heading":
            return f"{self.camera}: {self.heading}, so images of another time than the sweep's are moved the wrong way"
        if self.status == "time":
            offset_ms = self.time_offset_ms or 0
            offset = f"{abs(offset_ms):.0f} ms {'later' if offset_ms > 0 else 'earlier'}"
            return f"{self.camera}: images seem to be taken {offset} than stated; sure {self.time_sure:.0%} ({edges})"
        u, v = self.shift_px
        return (
            f"{self.camera}: points would fit better {abs(u):.1f} px further {'right' if u > 0 else 'left'} and "
            f"{abs(v):.1f} px {'down' if v > 0 else 'up'} (± {self.shift_error_px[0]:.1f}, "
            f"{self.shift_error_px[1]:.1f}): score {self.score:.2f} -> {self.best_score:.2f}, sure {self.sure:.0%} "
            f"({edges})"
        )


# ---- accumulation
_STRIPS = 6


@dataclass(eq=False)
class _Evidence:
    """Sums of edge strength over the borders of each strip, one row a strip of an image."""

    factor: int
    sides: list[Float[np.ndarray, "strips shifts coarse"]] = dataclasses.field(default_factory=list)
    tops: list[Float[np.ndarray, "strips shifts coarse"]] = dataclasses.field(default_factory=list)
    times: list[Float[np.ndarray, "strips times"]] = dataclasses.field(default_factory=list)
    timed_counts: list[Int[np.ndarray, " strips"]] = dataclasses.field(default_factory=list)
    side_counts: list[Int[np.ndarray, " strips"]] = dataclasses.field(default_factory=list)
    top_counts: list[Int[np.ndarray, " strips"]] = dataclasses.field(default_factory=list)
    gaps_px: tuple[list[float], list[float]] = dataclasses.field(default_factory=lambda: ([], []))


class CalibrationCheck:
    """Takes samples, one after another, and judges each camera."""

    def __init__(self, config: CheckConfig | None = None) -> None:
        self.config = config or CheckConfig()
        self._evidence: dict[str, _Evidence] = {}
        self._headings: dict[str, Heading] = {}
        reach, coarse = self.config.reach_px, self.config.coarse_px
        self._shifts = np.arange(-reach, reach + 1)
        self._coarse = np.arange(-(reach // coarse) * coarse, reach + 1, coarse)
        steps = round(self.config.time_reach_ms / self.config.time_step_ms)
        self._times_ms = np.arange(-steps, steps + 1) * self.config.time_step_ms

    def add(self, sample: Sample, motion: Motion | None = None) -> None:
        """Take the cameras of a sample that have an image; the ego's motion at its time is what times are judged by."""
        if motion is not None and np.linalg.norm(motion.velocity_mps) >= self.config.least_speed_mps:
            heading = self._headings.setdefault(sample.log, Heading())
            heading.add_way(motion.velocity_mps / np.linalg.norm(motion.velocity_mps))
        for camera in sample.cameras:
            if camera.image is not None:
                factor = math.ceil(camera.image_size[1] / self.config.max_width)
                evidence = self._evidence.setdefault(camera.name, _Evidence(factor=factor))
                self._add_camera(evidence, sample, camera, motion)

    def _add_camera(self, evidence: _Evidence, sample: Sample, camera: CameraView, motion: Motion | None) -> None:
        uv, edges = projected_edges(sample, camera)
        assert camera.image is not None
        width, height = (side // evidence.factor for side in camera.image_size[::-1])
        image = cv2.resize(camera.image, (width, height), interpolation=cv2.INTER_AREA)
        across_u, across_v = edge_strength(image)
        uv = (uv + 0.5) / evidence.factor - 0.5  # pixels count from the centre of the first
        margin = self.config.reach_px + 1
        inside = ((uv >= margin) & (uv < np.array([width, height]) - margin)).all(axis=1)
        strip = np.clip(uv[:, 0] * _STRIPS / width, 0, _STRIPS - 1).astype(np.int64)
        side, top = inside & ~edges.top, inside & edges.top
        fine_u = np.stack(np.meshgrid(self._shifts, self._coarse, indexing="ij"), axis=-1).astype(np.float64)
        fine_v = fine_u[..., ::-1]
        evidence.sides.append(_sums(_look_up(across_u, uv[side], fine_u), strip[side]))
        evidence.tops.append(_sums(_look_up(across_v, uv[top], fine_v), strip[top]))
        evidence.side_counts.append(np.bincount(strip[side], minlength=_STRIPS))
        evidence.top_counts.append(np.bincount(strip[top], minlength=_STRIPS))
        for kind, which in enumerate((side, top)):
            gaps = edges.gaps_rad[which] * camera.K[kind, kind] / evidence.factor
            evidence.gaps_px[kind].extend(gaps.tolist())
        if motion is not None and np.linalg.norm(motion.velocity_mps) >= self.config.least_speed_mps:
            self._add_times(evidence, sample, camera, motion, across_u, edges.points_lidar[side], strip[side])

    def _add_times(
        self,
        evidence: _Evidence,
        sample: Sample,
        camera: CameraView,
        motion: Motion,
        across_u: Float32[np.ndarray, "h w"],
        points: Float[np.ndarray, "n 3"],
        strip: Int[np.ndarray, " n"],
    ) -> None:
        values = np.zeros((len(self._times_ms), len(points)))
        for row, time_ms in enumerate(self._times_ms):
            moved = dataclasses.replace(camera, T_world_ego=camera.T_world_ego @ motion.over(time_ms / 1e3))
            uv, _ = project(camera.K, transform(sample.T_cam_lidar(moved), points))
            uv = (np.nan_to_num(uv, nan=-1e4) + 0.5) / evidence.factor - 0.5
            values[row] = _look_up(across_u, uv, np.zeros((1, 1, 2)))[0, 0]
        evidence.times.append(_sums(values[:, None], strip)[..., 0])
        evidence.timed_counts.append(np.bincount(strip, minlength=_STRIPS))

    # ---- judging
    def verdicts(self) -> tuple[CalibrationVerdict, ...]:
        """What the samples so far say, camera by camera; the same samples give the same verdict."""
        heading = "; ".join(troubles(self._headings))
        return tuple(self._judge(name, evidence, heading) for name, evidence in self._evidence.items())

    def profiles(self, camera: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Mean score over the shift in u and in v (pixels of the stored image) of one camera, for a curve."""
        evidence = self._evidence[camera]
        side, top = (_mean(np.concatenate(sums)) for sums in (evidence.sides, evidence.tops))
        counts = np.sum(evidence.side_counts), np.sum(evidence.top_counts)
        middle = len(self._coarse) // 2
        axis = (self._shifts * evidence.factor).astype(np.float64)
        curves = zip(("u", "v"), (side, top), counts, strict=True)
        return {name: (axis, sums[:, middle] / count) for name, sums, count in curves if count}

    def _judge(self, name: str, evidence: _Evidence, heading: str) -> CalibrationVerdict:
        config = self.config
        rng = np.random.default_rng(0)  # the same samples give the same verdict
        sides, tops = np.concatenate(evidence.sides), np.concatenate(evidence.tops)
        num_edges = (int(np.sum(evidence.side_counts)), int(np.sum(evidence.top_counts)))
        best = self._best_shift(_mean(sides), _mean(tops))
        draws = rng.multinomial(len(sides), np.full(len(sides), 1 / len(sides)), size=config.draws)
        resampled = np.array([self._best_shift(_mean(sides, draw), _mean(tops, draw)) for draw in draws])
        # Half a pixel, and half of what beams leave open.
        tolerance = np.array([0.5 + (float(np.median(gaps)) / 2 if gaps else 0.0) for gaps in evidence.gaps_px])
        here, there = self._at(sides, tops, 0.0, 0.0), self._at(sides, tops, best[0], best[1])
        general = np.median(sides.sum(axis=0)) + np.median(tops.sum(axis=0))
        per_edge = [float(total / max(sum(num_edges), 1)) for total in (here.sum(), there.sum(), general)]
        score, best_score, background = per_edge
        gain = _in_errors(there - here, draws)
        beyond = np.abs(best) > tolerance  # for u and for v
        same_way = (np.abs(resampled) > tolerance) & (np.sign(resampled) == np.sign(best))
        sure = float(max((same_way[:, axis].mean() for axis in (0, 1) if beyond[axis]), default=0.0))
        status = "fits"  # until something speaks against it
        if sum(num_edges) < config.min_edges or background <= 0:
            status = "undecided"
        elif sure >= config.min_sure and gain >= config.min_gain:
            status = "shift"
        # A wrong time also looks like a shift; it is the better explanation where it gains more.
        time_ms, time_sure, time_gain = self._judge_time(evidence, rng)
        if status != "undecided" and time_sure >= config.min_sure and time_gain >= max(config.min_gain, gain):
            status = "time"
        if heading and status == "time":  # images that fit although the vehicle moves tell that it really drove so
            status, time_ms = "heading", None
        error = resampled.std(axis=0)
        settled = bool((~beyond & ((np.abs(resampled) <= tolerance).mean(axis=0) >= config.min_settled)).all())
        # Is there anything to go by: does the best shift stand out from shifts in general?
        lift = there - np.median(sides, axis=(1, 2)) - np.median(tops, axis=(1, 2))
        if status == "fits" and not (settled and _in_errors(lift, draws) >= config.min_gain):
            status = "undecided"
        stored = [(values * evidence.factor).tolist() for values in (best, error, tolerance)]
        return CalibrationVerdict(
            camera=name,
            status=status,
            num_samples=len(evidence.sides),
            num_edges=num_edges,
            score=score,
            best_score=best_score,
            background=background,
            shift_px=(stored[0][0], stored[0][1]),
            shift_error_px=(stored[1][0], stored[1][1]),
            tolerance_px=(stored[2][0], stored[2][1]),
            sure=sure,
            time_offset_ms=time_ms,
            time_sure=time_sure,
            heading=heading,
        )

    def _best_shift(
        self, side: Float[np.ndarray, "shifts coarse"], top: Float[np.ndarray, "shifts coarse"]
    ) -> Float[np.ndarray, " 2"]:
        """The shift at which borders meet the strongest edges: u and v in turn, each at the other's best."""
        u = v = 0.0
        for _ in range(3):
            u = _peak(side[:, self._nearest_coarse(v)], self._shifts)
            v = _peak(top[:, self._nearest_coarse(u)], self._shifts)
        return np.array([u, v])

    def _nearest_coarse(self, shift: float) -> int:
        return int(np.abs(self._coarse - shift).argmin())

    def _at(
        self,
        sides: Float[np.ndarray, "strips shifts coarse"],
        tops: Float[np.ndarray, "strips shifts coarse"],
        u: float,
        v: float,
    ) -> Float[np.ndarray, " strips"]:
        """Edge strength under all borders at one shift."""
        reach = self.config.reach_px
        side = sides[:, round(u) + reach, self._nearest_coarse(v)]
        return np.asarray(side + tops[:, round(v) + reach, self._nearest_coarse(u)])

    def _judge_time(self, evidence: _Evidence, rng: np.random.Generator) -> tuple[float | None, float, float]:
        """Best time offset, how sure it is not none, and the gain in its standard errors."""
        if not evidence.times or int(np.sum(evidence.timed_counts)) < self.config.min_edges:
            return None, 0.0, 0.0
        sums = np.concatenate(evidence.times)
        best = _peak(_mean(sums), self._times_ms)
        draws = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=self.config.draws)
        resampled = np.array([_peak(_mean(sums, draw), self._times_ms) for draw in draws])
        least = self.config.least_time_ms
        sure = float((resampled * np.sign(best) > least).mean()) if abs(best) > least else 0.0
        row = int(np.abs(self._times_ms - best).argmin())
        gains = sums[:, row] - sums[:, len(self._times_ms) // 2]
        return best, sure, _in_errors(gains, draws)


def check_samples(samples: Iterable[Sample], config: CheckConfig | None = None) -> tuple[CalibrationVerdict, ...]:
    """Judge the cameras of some samples, without their times."""
    check = CalibrationCheck(config)
    for sample in samples:
        check.add(sample)
    return check.verdicts()


def _look_up(
    strength: Float32[np.ndarray, "h w"], uv: Float[np.ndarray, "n 2"], offsets: Float[np.ndarray, "a b 2"]
) -> Float[np.ndarray, "a b n"]:
    """Edge strength at each position with each offset; 0 outside the image."""
    a, b = offsets.shape[:2]
    if len(uv) == 0:
        return np.zeros((a, b, 0))
    at = (uv[None] + offsets.reshape(-1, 1, 2)).astype(np.float32)
    values = cv2.remap(strength, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    return np.asarray(values, dtype=np.float64).reshape(a, b, -1)


def _sums(values: Float[np.ndarray, "a b n"], strip: Int[np.ndarray, " n"]) -> Float[np.ndarray, "strips a b"]:
    return np.stack([values[..., strip == number].sum(axis=-1) for number in range(_STRIPS)])


def _mean(sums: Float[np.ndarray, "strips ..."], weights: Int[np.ndarray, " strips"] | None = None) -> np.ndarray:
    return np.asarray(sums.sum(axis=0) if weights is None else np.tensordot(weights, sums, axes=1))


def _in_errors(values: Float[np.ndarray, " strips"], draws: Int[np.ndarray, "draws strips"]) -> float:
    """The sum over the strips in its standard errors, which come from resampling the strips."""
    return float(values.sum() / (float((draws @ values).std()) or 1.0))


def _peak(curve: Float[np.ndarray, " n"], axis: np.ndarray) -> float:
    """Where a curve, slightly smoothed, is highest, to a fraction of its step; 0 for a flat one."""
    padded = np.pad(curve, 2, mode="edge")
    # A Gaussian of about one step.
    smooth = np.convolve(padded, [0.06, 0.24, 0.4, 0.24, 0.06], mode="valid")
    if float(np.ptp(smooth)) == 0:
        return 0.0
    top = int(smooth.argmax())
    step = float(axis[1] - axis[0])
    if not 0 < top < len(axis) - 1:
        return float(axis[top])
    left, middle, right = smooth[top - 1 : top + 2]
    bend = left - 2 * middle + right
    return float(axis[top]) + (0.5 * step * float((left - right) / bend) if bend < 0 else 0.0)
