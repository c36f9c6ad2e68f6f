"""What a 3D viewer shows of a drive, in words that belong to no viewer; `scene_rerun` and `scene_foxglove` write it.

Frames: `world` of the log, moved so that the first sample is at its origin (viewers compute in float32, and coordinates
of maps are millions of metres), `ego` at each sample's time, `lidar` fixed to it, cameras at their own times. Metres.
Pixel (0, 0) is the centre of the top-left pixel, as everywhere here; both viewers count from that pixel's corner, which
their writers add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float32, Int, Integer, UInt8

from data.geometry import rigid
from data.sample import IGNORE_LABEL, Boxes, CameraView, Sample
from data.storage.manifest import Manifest
from data.storage.reader import Reader, SampleError
from data.storage.shard import ShardError
from data.views.pairs import Pairs, point_pixel_pairs
from launchers.drawing.canvas import UNLABELLED, class_colours, class_palette
from launchers.drawing.scenes import depth_colours, spread_colours


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Points with colours.

    Attributes:
        name: what the colours show; letters only.
        points: x, y, z in the LiDAR frame.
        colours: red, green, blue.
        values: numbers of each point, by name.
    """

    name: str
    points: Float32[np.ndarray, "N 3"]
    colours: UInt8[np.ndarray, "N 3"]
    values: dict[str, Float32[np.ndarray, " N"]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SceneCamera:
    """One image.

    Attributes:
        time_us: when it was taken.
        T_world_cam: where from.
        T_world_ego: where the vehicle was then.
        K: pinhole intrinsics, pixels.
        image_size: height, width.
        jpeg: the image as the set stores it.
        superpixels: segment of each pixel; None where the set has none.
        pairs_uv: pixels of the points that the image sees.
        pairs_colours: of these, by depth.
    """

    name: str
    time_us: int
    T_world_cam: Float[np.ndarray, "4 4"]
    T_world_ego: Float[np.ndarray, "4 4"]
    K: Float[np.ndarray, "3 3"]
    image_size: tuple[int, int]
    jpeg: bytes
    superpixels: Integer[np.ndarray, "H W"] | None
    pairs_uv: Float[np.ndarray, "P 2"]
    pairs_colours: UInt8[np.ndarray, "P 3"]


@dataclass(frozen=True, kw_only=True)
class SceneBoxes:
    """Labelled objects in the LiDAR frame: `sizes_m` are length along the heading, width, height."""

    centers_m: Float[np.ndarray, "K 3"]
    sizes_m: Float[np.ndarray, "K 3"]
    yaws: Float[np.ndarray, " K"]
    names: tuple[str, ...]
    colours: UInt8[np.ndarray, "K 3"]


@dataclass(frozen=True, kw_only=True)
class SceneFrame:
    """One sample. `boxes` is None where the set has none."""

    key: str
    time_us: int
    T_world_ego: Float[np.ndarray, "4 4"]
    T_ego_lidar: Float[np.ndarray, "4 4"]
    clouds: tuple[Cloud, ...]
    cameras: tuple[SceneCamera, ...]
    boxes: SceneBoxes | None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A drive.

    Attributes:
        title: of the set or run, and the log.
        frames: in order of time, made when they are asked for; once.
        damaged: key, reason and detail of samples that could not be read, filled while frames are made.
    """

    title: str
    frames: Iterator[SceneFrame]
    damaged: list[tuple[str, str, str]] = field(default_factory=list)


MoreClouds = Callable[[int], Sequence[Cloud]]
"""Further clouds of a sample, by its row: what a network makes of it."""


def scene_of(
    manifest: Manifest, reader: Reader, rows: Sequence[int], title: str, more: MoreClouds | None = None
) -> Scene:
    """The scene of some samples of one log, in the order of their times.

    Raises:
        ShardError: they are of several logs, whose world frames have nothing to do with each other.
    """
    logs = sorted({int(manifest.sample_log[row]) for row in rows})
    if len(logs) != 1:
        names = ", ".join(str(manifest.logs[log]) for log in logs[:3]) or "no samples"
        raise ShardError(
            f"a scene is of one log, whose places are known to each other; got {names}: choose one by --log"
        )
    in_time = sorted(rows, key=lambda row: int(manifest.sample_timestamp_us[row]))
    damaged: list[tuple[str, str, str]] = []
    frames = _frames(manifest, reader, in_time, more, damaged)
    return Scene(title=f"{title}, {manifest.logs[logs[0]]}", frames=frames, damaged=damaged)


def _frames(
    manifest: Manifest,
    reader: Reader,
    rows: Iterable[int],
    more: MoreClouds | None,
    damaged: list[tuple[str, str, str]],
) -> Iterator[SceneFrame]:
    origin_m: Float[np.ndarray, " 3"] | None = None
    for row in rows:
        try:
            sample = reader.read(row, images="encoded")
            clouds = () if more is None else tuple(more(row))
        except SampleError as error:
            damaged.append((error.key, error.reason, error.detail))
            continue
        if origin_m is None:
            origin_m = sample.T_world_ego[:3, 3].astype(np.float64)
        yield frame_of(sample, manifest.class_names, origin_m, clouds)


def frame_of(
    sample: Sample, class_names: Sequence[str], origin_m: Float[np.ndarray, " 3"], clouds: Sequence[Cloud] = ()
) -> SceneFrame:
    """A sample that was read with its images encoded, with further clouds.

    `origin_m`: where in the log's world the scene's begins.
    """
    pairs, T_scene_world = point_pixel_pairs(sample), rigid(np.eye(3), -origin_m)
    return SceneFrame(
        key=sample.key,
        time_us=sample.timestamp_us,
        T_world_ego=T_scene_world @ sample.T_world_ego,
        T_ego_lidar=sample.T_ego_lidar,
        clouds=(*_clouds(sample, class_names), *clouds),
        cameras=tuple(
            _camera(sample, view, pairs, number, T_scene_world) for number, view in enumerate(sample.cameras)
        ),
        boxes=None if sample.boxes is None else _boxes(sample.boxes, class_names),
    )


def _clouds(sample: Sample, class_names: Sequence[str]) -> Iterator[Cloud]:
    points = sample.points_lidar.astype(np.float32)
    intensity = sample.intensity.astype(np.float32)
    colours, _, _ = spread_colours(intensity.astype(np.float64))
    yield Cloud(name="sweep", points=points, colours=colours, values={"intensity": intensity})
    if sample.labels is not None and class_names:
        labelled = class_colours(sample.labels, len(class_names))
        values = {"label": sample.labels.astype(np.float32)}
        yield Cloud(name="classes", points=points, colours=labelled, values=values)


def _camera(
    sample: Sample, view: CameraView, pairs: Pairs, number: int, T_scene_world: Float[np.ndarray, "4 4"]
) -> SceneCamera:
    assert view.jpeg is not None  # read so
    here = pairs.of_camera(number)
    seen = sample.points_lidar[pairs.point[here]].astype(np.float64)
    T_cam_lidar = sample.T_cam_lidar(view)
    depth_m = seen @ T_cam_lidar[2, :3] + T_cam_lidar[2, 3]
    T_world_ego = T_scene_world @ view.T_world_ego
    return SceneCamera(
        name=view.name,
        time_us=view.timestamp_us,
        T_world_cam=T_world_ego @ np.linalg.inv(view.T_cam_ego),
        T_world_ego=T_world_ego,
        K=view.K,
        image_size=view.image_size,
        jpeg=view.jpeg,
        superpixels=view.superpixels,
        pairs_uv=pairs.uv[here].astype(np.float64),
        pairs_colours=depth_colours(depth_m),
    )


def _boxes(boxes: Boxes, class_names: Sequence[str]) -> SceneBoxes:
    known = [0 <= c < len(class_names) and c != IGNORE_LABEL for c in boxes.classes.tolist()]
    palette = class_palette(len(class_names))
    colours = [palette[c] if ok else UNLABELLED for c, ok in zip(boxes.classes.tolist(), known, strict=True)]
    names = [class_names[c] if ok else "other" for c, ok in zip(boxes.classes.tolist(), known, strict=True)]
    return SceneBoxes(
        centers_m=boxes.centers_m.astype(np.float64),
        sizes_m=boxes.sizes_m.astype(np.float64),
        yaws=boxes.yaws.astype(np.float64),
        names=tuple(names),
        colours=np.array(colours, dtype=np.uint8).reshape(-1, 3),
    )


def quaternion(T: Float[np.ndarray, "4 4"]) -> tuple[float, float, float, float]:
    """x, y, z, w of a transform's rotation."""
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(T[:3, :3]).as_quat().tolist()
    return x, y, z, w


def log_rows(manifest: Manifest, log: str | None, num: int | None) -> Int[np.ndarray, " n"]:
    """The first `num` samples of a log, by time; of the first log of the set where none is named.

    Raises:
        ShardError: no such log; names some that there are.
    """
    order = manifest.indices()
    if log is None:
        chosen = int(manifest.sample_log[order[0]])
    else:
        names = list(map(str, manifest.logs))
        if log not in names:
            raise ShardError(
                f"{manifest.root} has no log {log!r}; it has {', '.join(names[:5])}{' ...' * (len(names) > 5)}"
            )
        chosen = names.index(log)
    rows = order[manifest.sample_log[order] == chosen]
    return np.asarray(rows if num is None else rows[:num])
