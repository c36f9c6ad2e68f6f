"""One two-node SLURM for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.slurm_cluster import SlurmCluster, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """The cluster, up; a test that takes a part of it down brings that part up again."""
    reason = why_not()
    if reason:
        pytest.skip(f"no SLURM test cluster: {reason}")
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running
