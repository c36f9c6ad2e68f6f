"""Writes ScanNet's exported frames, released meshes and VoteNet's scans, as the set and VoteNet's preparation do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from data.sample import IGNORE_LABEL, Sample

NYU40_OF_STREET = (2, 2, 1, 8, 5, 5, 7, 9, 38, 10, 11, 12, 14, 16, 24, 28, 33, 34, 36, 39, 40, 3, 4, 6)
"""NYU40 id under which each class of the street world is written; 38 and 40 are not evaluated."""

RAW_OFFSET = 100
"""Raw category of NYU40 id n is n + 100 in the table that is written."""


def write_frames(root: Path, scan: str, frames: Sequence[Sample], numbers: Sequence[int], *, labels: str) -> None:
    """The first camera of some frames as one scan: colour at full size, depth at half.

    Args:
        root: the set's folder.
        scan: e.g. "scene0001_00".
        frames: with depth and labels of the pixels.
        numbers: of the files.
        labels: "label-filt" (raw categories, with the table beside), "label" (NYU40 ids) or "".
    """
    folder = root / "scans" / scan
    for name in ("color", "depth", "pose", "intrinsic", *([labels] if labels else [])):
        (folder / name).mkdir(parents=True, exist_ok=True)
    if labels == "label-filt":
        rows = ["id\traw_category\tcategory\tnyu40id", *(f"{n + RAW_OFFSET}\tthing\tthing\t{n}" for n in range(1, 41))]
        (root / "scannetv2-labels.combined.tsv").write_text("\n".join(rows) + "\n")
    half = np.diag([0.5, 0.5, 1.0])
    for kind, K in (("color", frames[0].cameras[0].K), ("depth", half @ frames[0].cameras[0].K)):
        padded = np.eye(4)
        padded[:3, :3] = K
        np.savetxt(folder / "intrinsic" / f"intrinsic_{kind}.txt", padded, fmt="%.6f")
        np.savetxt(folder / "intrinsic" / f"extrinsic_{kind}.txt", np.eye(4), fmt="%.6f")
    for frame, number in zip(frames, numbers, strict=True):
        camera = frame.cameras[0]
        assert camera.image is not None
        assert camera.depth_m is not None
        cv2.imwrite(str(folder / "color" / f"{number}.jpg"), camera.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
        depth_m = camera.depth_m[::2, ::2]
        depth = np.where(depth_m < 65, np.round(depth_m * 1000), 0).astype(np.uint16)
        cv2.imwrite(str(folder / "depth" / f"{number}.png"), depth)
        np.savetxt(folder / "pose" / f"{number}.txt", camera.T_world_ego @ np.linalg.inv(camera.T_cam_ego), fmt="%.6f")
        if labels:
            cv2.imwrite(str(folder / labels / f"{number}.png"), _label_image(frame, raw=labels == "label-filt"))


def _label_image(frame: Sample, *, raw: bool) -> np.ndarray:
    labels = frame.cameras[0].labels
    assert labels is not None
    nyu40 = np.array([*NYU40_OF_STREET], dtype=np.uint16)[np.where(labels == IGNORE_LABEL, 0, labels)]
    nyu40[labels == IGNORE_LABEL] = 0
    if raw:
        return np.where(nyu40 > 0, nyu40 + RAW_OFFSET, 0).astype(np.uint16)
    return np.asarray(nyu40.astype(np.uint8))


def write_scan(folder: Path, scan: str, rng: np.random.Generator, *, suffix: str = "") -> dict[str, np.ndarray]:
    """A room of two boxes on a floor; gives back what was written, by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    floor = rng.uniform((-3, -3, -0.02), (3, 3, 0.02), (400, 3))
    chair, bag = rng.uniform((1, 1, 0), (1.6, 1.5, 0.9), (150, 3)), rng.uniform((-2, 0, 0), (-1.5, 0.4, 0.5), (50, 3))
    points = np.concatenate([floor, chair, bag])
    colours = rng.integers(0, 256, points.shape)
    parts = (chair, bag)
    boxes = [[*((p.min(0) + p.max(0)) / 2), *np.ptp(p, axis=0), kind] for p, kind in zip(parts, (5, 37), strict=True)]
    counts = (len(floor), len(chair), len(bag))
    tables = {
        f"vert{suffix}": np.concatenate([points, colours], axis=1).astype(np.float32),
        f"sem_label{suffix}": np.repeat([2, 5, 37], counts).astype(np.uint32),
        f"ins_label{suffix}": np.repeat([0, 1, 2], counts).astype(np.uint32),
        "bbox": np.array(boxes),
    }
    for kind, table in tables.items():
        np.save(folder / f"{scan}_{kind}.npy", table)
    return tables


def write_mesh(root: Path, scan: str, rng: np.random.Generator, *, labelled: bool = True) -> dict[str, np.ndarray]:
    """The released files of a room of two boxes on a floor; gives back what was written."""
    folder = root / "scans" / scan
    folder.mkdir(parents=True)
    floor = rng.uniform((-3, -3, -0.02), (3, 3, 0.02), (400, 3))
    chair, bag = rng.uniform((1, 1, 0), (1.6, 1.5, 0.9), (150, 3)), rng.uniform((-2, 0, 0), (-1.5, 0.4, 0.5), (50, 3))
    points = np.concatenate([floor, chair, bag]).astype("<f4")
    colours = rng.integers(0, 256, points.shape).astype("u1")
    nyu40, segments = np.repeat([2, 5, 37], (400, 150, 50)), np.repeat([7, 9, 12, 40], (400, 100, 50, 50))
    named = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("red", "u1"), ("green", "u1"), ("blue", "u1"), ("alpha", "u1")]
    table = np.zeros(len(points), dtype=[*named, ("label", "<u2")])
    for column, (name, _) in enumerate(named[:6]):
        table[name] = points[:, column] if column < 3 else colours[:, column - 3]
    table["label"] = nyu40
    turn = np.array([[0.0, -1, 0, 0.5], [1, 0, 0, -0.25], [0, 0, 1, 0.1], [0, 0, 0, 1]])
    text = "" if not labelled else f"axisAlignment = {' '.join(f'{value:.6f}' for value in turn.ravel())} \n"
    (folder / f"{scan}.txt").write_text(f"{text}colorHeight = 968\nsceneType = Bedroom\n")
    _write_ply(folder / f"{scan}_vh_clean_2.ply", table[[name for name, _ in named]])
    if labelled:
        _write_ply(folder / f"{scan}_vh_clean_2.labels.ply", table)
        objects = [
            {"id": n, "objectId": n, "segments": part, "label": "thing"} for n, part in enumerate([[9, 12], [40]])
        ]
        write = {f"{scan}_vh_clean_2.0.010000.segs": {"sceneId": scan, "segIndices": segments.tolist()}}
        write[f"{scan}.aggregation"] = {"sceneId": scan, "segGroups": objects}
        for stem, content in write.items():
            (folder / f"{stem}.json").write_text(json.dumps(content))
    return {"points": points, "colours": colours, "nyu40": nyu40, "turn": turn if labelled else np.eye(4)}


def _write_ply(path: Path, table: np.ndarray) -> None:
    words = {"f": "float", "u1": "uchar", "u2": "ushort"}
    assert table.dtype.names is not None
    kinds = [(name, table.dtype[name].str.strip("<|")) for name in table.dtype.names]
    lines = [f"property {words.get(kind, 'float')} {name}" for name, kind in kinds]
    head = ["ply", "format binary_little_endian 1.0", "comment a room", f"element vertex {len(table)}", *lines]
    head += ["element face 1", "property list uchar int vertex_indices", "end_header"]
    packed = np.empty(len(table), dtype=[(name, table.dtype[name].str) for name in table.dtype.names])
    for name in table.dtype.names:
        packed[name] = table[name]
    face = np.array([3], "u1").tobytes() + np.array([0, 1, 2], "<i4").tobytes()
    path.write_bytes("\n".join(head).encode() + b"\n" + packed.tobytes() + face)
