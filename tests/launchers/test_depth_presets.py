"""The presets of papers on depth, on small sets in the layouts that they name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.load import load
from configs.schema import EvaluateConfig
from data.convert.nyu import NyuConverter
from data.loading.image_evaluation import area_mask
from data.preparing.prepare import PrepareConfig, prepare
from data.storage.manifest import load_manifest
from engine.downstream.common import Samples
from engine.downstream.dense import build_dense, score_dense, train_dense
from engine.downstream.depth import DepthTask
from launchers.evaluation.images import DECODERS, LabelledImages
from tests.helpers.layouts.nyu import write_nyu
from tests.helpers.toy_dense import ToyEncoder


@pytest.mark.parametrize("name", ["kitti_eigen_depth", "nyu_depth"])
def test_presets_state_the_recipe_of_their_papers(name: str) -> None:
    config = load(EvaluateConfig, name)
    depth, images = config.depth, config.images
    assert (depth.decoder, depth.width, depth.schedule, depth.epochs) == ("densedepth", 128, "onecycle", 24)
    assert (depth.root_scale, depth.scale_invariance, depth.min_depth_m) == (10.0, 0.85, 1e-3)
    assert depth.cap_m == (80.0 if name.startswith("kitti") else 10.0)
    assert images.depth_area == ("garg" if name.startswith("kitti") else "nyu")
    assert depth.updates(23_158) == 24 * 2895


def test_nyu_goes_from_its_files_to_metrics(tmp_path: Path) -> None:
    truth = write_nyu(tmp_path / "source", frames=1)
    out = tmp_path / "shards"
    prepare(NyuConverter(source=str(tmp_path / "source")), str(out), PrepareConfig(superpixels=None))
    manifest = load_manifest(str(out))
    config = load(EvaluateConfig, "nyu_depth", ["depth.width=4", "depth.epochs=1", "data.num_workers=0"])
    read = LabelledImages(manifest, config, config.images.size or (0, 0))
    train, test = (manifest.indices(split) for split in ("train", "val"))
    (batch,) = read(Samples(test.tolist(), truth="depth"))
    assert batch.image_depth_m is not None
    expected = np.where(area_mask((480, 640), "nyu"), truth, 0) / 1000
    np.testing.assert_allclose(batch.image_depth_m[0].numpy(), expected, atol=0.0051)  # stored in centimetres
    (augmented,) = read(Samples(train.tolist(), truth="depth", augment=True))
    assert augmented.images is not None
    assert augmented.images.shape[-2:] == (416, 544)
    task = DepthTask(config.depth)
    network = build_dense(ToyEncoder(0), task, config.depth, DECODERS[config.depth.decoder], seed=0, frozen=False)
    before = [p.detach().clone() for p in network.parameters()]
    train_dense(network, read, train, task, config.depth, lr=1e-4, seed=0)
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True) if a.ndim > 1)
    metrics = score_dense(network, [batch], task).metrics()
    assert all(np.isfinite(list(metrics.values())))
    assert metrics["log10"] > 0
