"""The papers' tables in configs/reproduce: all that they name exists, and their pages are those of the files."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from benchmarks.common import REPOSITORY
from configs.detection import FinetuneConfig
from configs.find import PACKAGED
from configs.load import ConfigError
from configs.paper_tables import ReproduceConfig, asked, load_paper, papers
from configs.schema import PretrainConfig
from engine.detection.judge import BENCHMARKS as BOX_BENCHMARKS
from engine.downstream.metrics import METRICS
from engine.downstream.protocols import PROTOCOLS
from engine.segmentation.judge import BENCHMARKS as SEGMENT_BENCHMARKS
from launchers.cli import main as tandem
from launchers.finetuning.init import check_fits
from launchers.reproducing.page import page
from launchers.reproducing.steps import Places, Step, published_file, steps_of
from launchers.training.train import load_any_run

every_paper = pytest.mark.parametrize("name", papers())


@functools.cache
def config_of(name: str) -> ReproduceConfig:
    return load_paper(name)


def steps(name: str) -> list[Step]:
    return steps_of(asked(name, None, ()), Places())


@every_paper
def test_each_step_serves_a_table_and_each_name_means_something(name: str) -> None:
    config = config_of(name)
    used = {cell.step for *_, cell in config.cells()} - {""}
    assert config.chain(used) == list(config.steps), "some step belongs to no table"
    for step in config.steps.values():
        for file in step.weights():
            assert published_file(file)
    for _, row, column, cell in config.cells():
        first, _, second = cell.measure.partition(":")
        if not cell.step or not first:
            continue
        if config.steps[cell.step].verb == "evaluate":
            assert first in PROTOCOLS, (row, column)
            assert not second or second in METRICS, (row, column)
        else:
            assert first in {*BOX_BENCHMARKS, *SEGMENT_BENCHMARKS}, (row, column)


def test_prepared_sets_of_one_name_are_the_same_in_all_papers() -> None:
    """They lie in one folder."""
    known: dict[str, object] = {}
    for name in papers():
        for step, config in config_of(name).steps.items():
            if config.verb == "prepare":
                assert known.setdefault(step, config) == config, (name, step)


def test_slidrs_figures_stand_in_the_headers_of_its_recipes_too() -> None:
    config = config_of("slidr")
    for _, row, column, cell in config.cells():
        step = config.steps.get(cell.step)
        if step is not None and step.verb == "evaluate" and "data.test_split=minival" not in step.overrides:
            header = (PACKAGED / "downstream" / f"{step.config}.yaml").read_text()
            assert cell.published in {float(n) for n in re.findall(r"\d+\.\d+", header)}, (row, column)


@pytest.mark.slow
@every_paper
def test_every_command_is_understood_and_every_run_fills_the_detector_that_starts_from_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, fitted = {}, set()
    for step in steps(name):
        start = step.config.start
        assert tandem([*step.arguments, "--show-config"]) == 0, (step.name, capsys.readouterr().err)
        if not step.trains:
            continue
        runs[step.name] = config = load_any_run(step.config.config, step.settings)
        if isinstance(config, FinetuneConfig) and start and (step.config.config, start) not in fitted:
            fitted.add((step.config.config, start))
            run = runs[start]
            assert isinstance(run, PretrainConfig)
            check_fits(run.method, run.data.voxel, config)


LONG = {"nclr", "slidr"}
"""Papers whose pages take seconds to make."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in papers()])
def test_a_papers_page_is_that_of_its_file(name: str) -> None:
    path = REPOSITORY / "docs" / "reproduce" / f"{name}.md"
    assert path.read_text() == page(name), f"tandem reproduce {name} --markdown > docs/reproduce/{name}.md"


def test_the_overview_names_every_paper_and_table() -> None:
    text = (REPOSITORY / "docs" / "reproduce.md").read_text()
    for name in papers():
        assert f"reproduce/{name}.md" in text
        for table in config_of(name).tables:
            assert f"`{table}`" in text, f"table {table} of {name}"


STEP = "steps:\n  set: {verb: prepare, config: street, data: synthetic}\n"


@pytest.mark.parametrize(
    ("steps", "cell", "message"),
    [
        (
            "  run: {verb: pretrain, config: slidr_street, shards: sett}\n",
            "run",
            "needs 'sett', expected a step above it",
        ),
        ("  run: {verb: pretrain, config: slidr_stret, shards: set}\n", "run", "no file of configs/pretrain; did you"),
        ("  run: {verb: pretrain, config: slidr_street}\n", "run", "shards: no value given"),
        ("  run: {verb: evaluate, config: street, shards: set}\n", "run", "start: no value given"),
        ("  run: {verb: pretrain, config: slidr_street, shards: set, processes: 0}\n", "run", "processes"),
        ("", "seet", "step: got 'seet', no step; did you mean"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, steps: str, cell: str, message: str) -> None:
    path = tmp_path / "paper.yaml"
    table = f"tables: {{one: {{title: t, rows: {{row: {{cells: {{x: {{step: {cell}}}}}}}}}}}}}\n"
    path.write_text(f"title: T\npaper: P\n{STEP}{steps}{table}")
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_paper(str(path))


def test_the_steps_of_a_row_are_those_that_it_needs() -> None:
    part = asked("slidr", "2", ("SLidR",))
    assert part.steps == ["nuscenes_slidr", "semantickitti_sweeps", "slidr", "slidr-probe", "slidr-1pct", "slidr-kitti"]
    assert isinstance(part.config, ReproduceConfig)
    with pytest.raises(ConfigError, match="--table: got '7', expected one of 2, 3, 4, ablation"):
        asked("slidr", "7", ())
    with pytest.raises(ConfigError, match=r"--row: got 'SLIDR'.*did you mean 'SLidR'"):
        asked("slidr", "2", ("SLIDR",))
