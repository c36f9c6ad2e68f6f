"""Labels of points by the names of classes that a network tells apart."""

import numpy as np
import pytest

from data.batch_spec import BatchSpec
from data.loading.evaluation import load_batch
from data.loading.loader import DataConfig
from data.sample import IGNORE_LABEL
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from tests.helpers.street_set import write_street_set


def spec(*names: str, instances: bool = False) -> BatchSpec:
    return BatchSpec(images=False, point_classes=names, instances=instances)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SampleReader:
    return SampleReader(load_manifest(write_street_set(tmp_path_factory.mktemp("set") / "shards")))


def test_classes_are_numbered_as_they_are_asked_for(reader: SampleReader) -> None:
    names = reader.manifest.class_names
    config = DataConfig(shards=reader.manifest.root)
    stored = [reader.read(index, images=False).labels for index in range(2)]
    batch = load_batch(reader, [0, 1], config, spec("car", "road"))
    assert batch.labels is not None
    assert batch.instances is None
    numbers = np.full(256, IGNORE_LABEL)
    numbers[[names.index("car"), names.index("road")]] = [0, 1]
    expected = np.concatenate([numbers[part] for part in stored if part is not None])
    assert set(expected.tolist()) > {0, 1}, "the frames hold both, and others"
    np.testing.assert_array_equal(batch.labels.numpy(), expected)


def test_objects_come_along_where_they_are_asked_for(reader: SampleReader) -> None:
    names = reader.manifest.class_names
    batch = load_batch(reader, [0, 1], DataConfig(shards=reader.manifest.root), spec(*names, instances=True))
    stored = np.concatenate([reader.read(index, images=False).instances for index in range(2)])  # type: ignore[misc]
    assert stored.max() > 0
    np.testing.assert_array_equal(batch.need("instances", by="the test").numpy(), stored)


def test_a_class_that_the_set_has_not_is_named(reader: SampleReader) -> None:
    with pytest.raises(ShardError, match="has no class 'tram' whose points are asked for"):
        load_batch(reader, [0], DataConfig(shards=reader.manifest.root), spec("tram", "car"))


def test_objects_belong_to_labelled_points() -> None:
    with pytest.raises(ValueError, match="point_classes"):
        BatchSpec(instances=True)
