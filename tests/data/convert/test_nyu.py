from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from data.convert.base import Skipped
from data.convert.nyu import NyuConverter
from data.geometry import project, transform
from data.sample import Sample
from data.storage.encode import CodecConfig, encode_sample
from data.storage.shard import ShardError
from tests.helpers.layouts.nyu import write_nyu


def frames(converter: NyuConverter, log: str) -> list[Sample | Skipped]:
    return list(converter.frames(log, 0, converter.num_frames(log)))


def test_test_scenes_are_val_and_each_pixel_is_lifted_to_its_depth(tmp_path: Path) -> None:
    depth = write_nyu(tmp_path)
    converter = NyuConverter(source=str(tmp_path))
    assert converter.logs() == ("bathroom_0001", "test_bathroom")
    assert [converter.split_of(log) for log in converter.logs()] == ["train", "val"]
    sample = frames(converter, "test_bathroom")[1]
    assert isinstance(sample, Sample)
    (camera,) = sample.cameras
    assert (sample.key, camera.name) == ("test_bathroom_00001", "rgb")
    assert camera.depth_m is not None
    np.testing.assert_allclose(camera.depth_m, depth / 1000.0, rtol=1e-6)
    # By hand: pixel (u=300, v=100) with the toolbox's intrinsics.
    z = depth[100, 300] / 1000
    expected = np.array([(300 - 325.5824) / 518.8579 * z, (100 - 253.7362) / 519.4696 * z, z])
    seen = transform(sample.T_cam_lidar(camera), sample.points_lidar)
    assert np.linalg.norm(seen - expected, axis=1).min() < 1e-5
    uv, found = project(camera.K, seen)
    pixels = uv.round().astype(int)
    np.testing.assert_allclose(found, depth[pixels[:, 1], pixels[:, 0]] / 1000, atol=1e-4)
    assert len(sample.points_lidar) == 240 * 320 - 1
    encode_sample(sample, CodecConfig())


def test_labelled_training_frames_are_a_choice_and_scenes_can_be_thinned(tmp_path: Path) -> None:
    write_nyu(tmp_path, scenes=("sync/study_0008", "official_splits/train/study"), frames=5)
    thin = NyuConverter(source=str(tmp_path), every_frame=2)
    assert [sample.key[-1] for sample in frames(thin, "study_0008")] == ["0", "2", "4"]
    assert "no official_splits/test" in thin.notes()
    labelled = NyuConverter(source=str(tmp_path), train="labelled")
    assert (labelled.logs(), labelled.num_frames("study")) == (("study",), 5)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"sync/<scene>/\{rgb_NNNNN\.jpg,sync_depth_NNNNN\.png\}"):
        NyuConverter(source=str(tmp_path)).logs()
    write_nyu(tmp_path, frames=4)
    folder = tmp_path / "sync" / "bathroom_0001"
    (folder / "rgb_00000.jpg").unlink()
    (folder / "sync_depth_00001.png").unlink()
    cv2.imwrite(str(folder / "sync_depth_00002.png"), np.ones((240, 320), np.uint16))
    found = frames(NyuConverter(source=str(tmp_path)), "bathroom_0001")
    assert [item.reason for item in found if isinstance(item, Skipped)] == [
        "member-missing",
        "member-missing",
        "image-size",
    ]
    with pytest.raises(ValueError, match="every_frame"):
        NyuConverter(source="-", every_frame=0)
