"""What `make check` runs: the tests of changed files."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def mirrored():
    spec = importlib.util.spec_from_file_location("changed_tests", ROOT / ".ci" / "changed_tests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda path: list(module.mirrored(Path(path), ROOT))


def test_a_module_has_the_tests_that_mirror_it(mirrored):
    assert mirrored("data/order.py") == ["tests/data/test_order.py"]
    assert mirrored("examples/own_data.py") == ["tests/examples/test_examples.py"]
    assert mirrored("configs/pretrain/slidr_street.yaml") == []


def test_a_module_without_a_mirror_has_those_that_import_it(mirrored):
    found = mirrored("data/storage/mixture.py")
    assert found == ["tests/data/storage/test_mixture.py"]
    assert "tests/data/storage/test_shards.py" in mirrored("data/storage/shard_writer.py")


def test_tests_and_pages(mirrored):
    assert mirrored("tests/data/test_order.py") == ["tests/data/test_order.py"]
    assert mirrored("tests/helpers/samples.py") == []
    assert mirrored("docs/shards.md") == ["tests/test_docs_links.py"]
