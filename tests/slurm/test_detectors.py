"""Pre-training on a real two-node SLURM, then a detector and segmentation by themselves, one report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from launchers.runs.attempts import read_attempts
from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.street_set import write_street_set
from tests.launchers.test_follow_detectors import SECOND, SEGCONTRAST, SWEEP, detector_overrides
from tests.slurm.test_submitit import ON_THE_CLUSTER, QUICK, jobs_of, logs_of, states, tandem, wait_until_over

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


def test_a_detector_and_segmentation_follow_by_themselves(cluster: SlurmCluster, tmp_path: Path) -> None:
    shards, root = write_street_set(tmp_path / "set"), tmp_path / "sweep"
    follow = [f"evaluate.configs=[configs/downstream/street.yaml,{SECOND}]", "evaluate.fractions=[4]"]
    follow += [f"evaluate.overrides={json.dumps([*QUICK, 'protocols=[knn]'])}", detector_overrides(shards)]
    own = [text for text in SWEEP["overrides"] if not text.startswith("evaluate.")]
    sweep = {**SWEEP, "base": SEGCONTRAST, "root": str(root), "overrides": [*own, *follow]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    said = tandem(cluster, "sweep", str(tmp_path / "sweep.yaml"), f"data.shards={shards}", *ON_THE_CLUSTER).stdout

    run = root / "seed_0"
    report = jobs_of(run).report
    assert report is not None, said
    assert wait_until_over(cluster, report, root / "logs") == "COMPLETED", logs_of(root / "logs")
    assert [attempt.status for attempt in read_attempts(run)] == ["finished"]
    assert states(cluster, list(jobs_of(run).evaluate.values())) == {"COMPLETED"}
    name = "second-street-4-frames-seed0"
    (random,) = (root / "random_detectors").glob(f"{name}-*")
    for detector in (run / "detectors" / name, random):
        assert [attempt.status for attempt in read_attempts(detector)] == ["finished"], logs_of(root / "logs")
    start = json.loads((run / "detectors" / name / "init.json").read_text())
    assert "backbone.encoder" in start["filled"]

    text = (root / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| second on second_tiny | 4 frames |")]
    assert [row.split(" | ")[2] for row in rows] == ["random", "segcontrast"], text
    assert "kNN" in text
    training = text[text.index("## Pre-training") :]
    pretrained, detectors = training.split("## Training with labels")
    assert "seed_0" in pretrained
    assert name not in pretrained
    assert name in detectors
