"""What the official development kit makes of found objects: values to compare `engine.detection.nuscenes` with.

The kit pins numpy below 2, so it cannot be installed beside this project. A scene is a file with a frame a line, as
`tests.helpers.nuscenes_scenes.line_of` writes it. tests/golden/nuscenes_metric.json was made by

    python -m tests.helpers.nuscenes_scenes DIR
    python -m venv KIT && KIT/bin/pip install nuscenes-devkit==1.2.0
    KIT/bin/python tests/reference/nuscenes_devkit_metric.py --frames tests/golden/nuscenes_metric.json DIR/*.jsonl

Without --frames the scenes themselves are left out of the file; `benchmarks.detection_metrics nuscenes` uses it so.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from typing import Any

RACK = "static_object.bicycle_rack"


class Tables:
    """As much of the kit's data base as its filter of bicycle racks looks at."""

    def __init__(self, frames: list[dict[str, Any]]) -> None:
        self.racks = {
            f"{frame['key']}/{number}": row
            for frame in frames
            for number, row in enumerate(frame["true"])
            if row[0] == RACK
        }
        self.of_frame: dict[str, list[str]] = {frame["key"]: [] for frame in frames}
        for token in self.racks:
            self.of_frame[token.partition("/")[0]].append(token)

    def get(self, table: str, token: str) -> dict[str, Any]:
        if table == "sample":
            return {"anns": self.of_frame[token]}
        category, *box = self.racks[token][:8]
        return {"category_name": category, **placed(box)}


def placed(box: list[float]) -> dict[str, Any]:
    x, y, z, length, width, height, yaw = box
    return {
        "translation": [x, y, z],
        "size": [width, length, height],
        "rotation": [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)],
    }


def boxes_of(frames: list[dict[str, Any]], side: str) -> Any:
    """The kit's boxes of one side; true ones of the challenge's classes only, as its loader has it."""
    from nuscenes.eval.common.data_classes import EvalBoxes  # type: ignore[import-not-found]
    from nuscenes.eval.detection.data_classes import DetectionBox  # type: ignore[import-not-found]
    from nuscenes.eval.detection.utils import category_to_detection_name  # type: ignore[import-not-found]

    boxes = EvalBoxes()
    for frame in frames:
        some = []
        for name, *row in frame[side]:
            category = category_to_detection_name(name) if side == "true" else name
            if category is None:
                continue
            (*box, vx, vy), attribute, *rest = row[:9], *row[9:]
            place = placed(box)
            some.append(
                DetectionBox(
                    sample_token=frame["key"],
                    **place,
                    velocity=tuple(math.nan if v is None else v for v in (vx, vy)),
                    ego_translation=tuple(a - b for a, b in zip(place["translation"], frame["origin"], strict=True)),
                    num_pts=rest[0] + rest[1] if side == "true" else -1,
                    detection_name=category,
                    detection_score=rest[0] if side == "found" else -1.0,
                    attribute_name=attribute,
                )
            )
        boxes.add_boxes(frame["key"], some)
    return boxes


def judge(frames: list[dict[str, Any]]) -> dict[str, Any]:
    """The kit's values, and its seconds for filtering and judging."""
    from nuscenes.eval.common.config import config_factory  # type: ignore[import-not-found]
    from nuscenes.eval.common.loaders import filter_eval_boxes  # type: ignore[import-not-found]
    from nuscenes.eval.detection.evaluate import DetectionEval  # type: ignore[import-not-found]

    kit = DetectionEval.__new__(DetectionEval)  # its constructor reads a data base
    kit.cfg, kit.verbose = config_factory("detection_cvpr_2019"), False
    true, found = boxes_of(frames, "true"), boxes_of(frames, "found")
    began = time.process_time()
    kit.pred_boxes, kit.gt_boxes = (filter_eval_boxes(Tables(frames), b, kit.cfg.class_range) for b in (found, true))
    kit.sample_tokens = kit.gt_boxes.sample_tokens
    summary = kit.evaluate()[0].serialize()
    kept = {"true": len(kit.gt_boxes.all), "found": len(kit.pred_boxes.all)}
    wanted = ("mean_ap", "nd_score", "tp_errors", "label_aps", "label_tp_errors")
    return {name: summary[name] for name in wanted} | {"kept": kept, "seconds": time.process_time() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("scenes", nargs="+")
    parser.add_argument("--frames", action="store_true")
    options = parser.parse_args()
    results = {}
    for path in options.scenes:
        with open(path) as lines:
            frames = [json.loads(line) for line in lines]
        values = judge(frames)
        if options.frames:
            values = {**values, "frames": frames}
            del values["seconds"]
        results[os.path.basename(path).partition(".")[0]] = values
    with open(options.output, "w") as output:
        json.dump(results, output, separators=(",", ":"))
        output.write("\n")


if __name__ == "__main__":
    main()
