r"""What the official development kit makes of files of results, read by itself: detections, and segments of points.

The kit pins numpy below 2, so it runs in an environment of its own. `benchmarks.nuscenes_files` calls

    KIT/bin/python tests/reference/nuscenes_devkit_files.py ROOT VERSION SPLIT OUTPUT [--detections FILE] \
        [--panoptic FOLDER]

on a folder in nuScenes' layout.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def detections(tables: Any, split: str, file: str, folder: str) -> dict[str, Any]:
    """By the kit's own reader and metric."""
    from nuscenes.eval.common.config import config_factory  # type: ignore[import-not-found]
    from nuscenes.eval.detection.evaluate import DetectionEval  # type: ignore[import-not-found]

    kit = DetectionEval(tables, config_factory("detection_cvpr_2019"), file, split, folder, verbose=False)
    summary = kit.evaluate()[0].serialize()
    wanted = ("mean_ap", "nd_score", "tp_errors", "label_aps", "label_tp_errors")
    counts = {"samples": len(kit.sample_tokens), "true": len(kit.gt_boxes.all), "found": len(kit.pred_boxes.all)}
    return {name: summary[name] for name in wanted} | counts | {"meta": kit.meta}


def panoptic(tables: Any, split: str, results: str, folder: str) -> dict[str, Any]:
    """By the kit's own reader and metric; the task is that of submission.json, as in its command."""
    from nuscenes.eval.panoptic.evaluate import NuScenesPanopticEval  # type: ignore[import-not-found]

    meta = json.loads(Path(results, split, "submission.json").read_text())["meta"]
    kit = NuScenesPanopticEval(tables, results, split, meta["task"], min_inst_points=15, out_dir=folder)
    return {"classes": kit.evaluate_segmentation(), "samples": len(kit.sample_tokens), "meta": meta}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("root", "version", "split", "output"):
        parser.add_argument(name)
    parser.add_argument("--detections")
    parser.add_argument("--panoptic")
    options = parser.parse_args()
    from nuscenes.nuscenes import NuScenes  # type: ignore[import-not-found]

    tables = NuScenes(options.version, options.root, verbose=False)
    folder, said = str(Path(options.output).parent), {}
    if options.detections is not None:
        said["detections"] = detections(tables, options.split, options.detections, folder)
    if options.panoptic is not None:
        said["panoptic"] = panoptic(tables, options.split, options.panoptic, folder)
    Path(options.output).write_text(json.dumps(said))


if __name__ == "__main__":
    main()
