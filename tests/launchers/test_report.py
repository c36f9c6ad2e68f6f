from __future__ import annotations

import dataclasses
import io
import json
import math
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from engine.distributed import free_port
from engine.downstream.confusion import ConfusionMatrix
from engine.downstream.metrics import METRICS
from engine.downstream.results import Result, paired_difference, write_results
from engine.errors import CheckpointError
from launchers.cli import main as tandem
from launchers.drawing.curves import MAX_POINTS, RunCurve, chart, thinned, tick_labels, ticks
from launchers.evaluation.selection import Selection
from launchers.reporting import report_page
from launchers.reporting.collect import ReportSources, gather, told_apart
from launchers.reporting.report_files import write_report
from launchers.reporting.report_page import RunReport, _tiles, page
from launchers.reporting.run_facts import command_text
from launchers.reporting.table import groups, markdown, print_table
from launchers.reporting.troubles import Trouble
from launchers.runs.attempts import begin
from launchers.runs.files import read_config, read_metrics
from launchers.runs.job_record import Jobs, write_jobs
from launchers.runs.settings import labels, setting_of, setting_of_tree
from tests.engine.downstream.test_results import make
from tests.helpers.colour_vision import least_distances
from tests.helpers.run_folder import run_config, write_toy_run
from tests.helpers.samples import write_toy_set

RANDOM = make(init="random", pretrained=False, teacher="", leak="none", miou=(20.0, 30.0, 10.0), checkpoint=())
OURS = make(miou=(24.0, 35.0, 16.0), checkpoint=("run/step 1",))


class _Page(HTMLParser):
    """Text and addresses of a page; complains about unclosed tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "srcset", "data"}]
        if tag not in {"meta", "img", "br", "line", "polyline", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(content: str) -> _Page:
    parsed = _Page()
    parsed.feed(content)
    assert not parsed.open
    return parsed


def test_report_of_runs_and_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_toy_set(tmp_path / "set", num_logs=2, frames_per_log=1)
    write_toy_run(tmp_path / "runs" / "a", shards)
    write_results(tmp_path / "runs" / "a" / "results.json", [OURS, RANDOM])
    out = tmp_path / "report.html"
    assert tandem(["report", str(tmp_path / "runs"), "--out", str(out)]) == 0
    terminal = capsys.readouterr().out
    assert "25.0 ± 9.5" in out.with_suffix(".md").read_text()
    assert "25.0 ± 9.5" in terminal
    assert "+5.0 ± 1.0" in terminal
    assert terminal.rstrip().endswith("MiB, 2 results, 1 run")
    parsed = parse(out.read_text())
    text = " ".join(parsed.text)
    for expected in ("25.0 ± 9.5", "+5.0 ± 1.0", "no test point", "toy: linear probe", "tandem report", "cores"):
        assert expected in text
    assert {"svg", "img", "table"} <= parsed.tags
    assert "script" not in parsed.tags
    assert parsed.addresses
    assert all(address.startswith("data:image/") for address in parsed.addresses)


def test_everything_from_files_is_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>|</td>"
    result = make(init=evil, teacher=evil, dataset=evil, class_iou={evil: 3.0}, checkpoint=(evil,), machine=evil)
    run = RunReport(evil, {evil: evil}, {"train/loss": ([1.0], [2.0])}, {evil: np.zeros((4, 4, 3), np.uint8)}, evil)
    trouble = Trouble(run=evil, state=evil, done=0, elements=1, why=(evil,))
    choice = Selection(step=1, last=evil, by=evil, split=evil, scores={1: 2.0}, settings="")
    sources = ReportSources(results=[result], chosen={evil: choice}, trouble=[trouble])
    parsed = parse(page(sources, [run], evil, {"date": evil}))
    assert all(address.startswith("data:image/") for address in parsed.addresses)
    assert "".join(parsed.text).count(evil) > 20
    assert "<img" not in markdown([result])
    assert all(line.count("|") - line.count("\\|") == 9 for line in markdown([result]).splitlines() if line[:1] == "|")


def test_groups_hold_only_what_may_be_compared() -> None:
    other = make(fingerprint="g", init="other")
    made = groups([OURS, other, RANDOM])
    assert [[r.init for r in g.results] for g in made] == [["random", "slidr"], ["other"]]
    assert made[1].gains == (None,)
    assert [row[2] for row in made[0].rows] == ["–", "+5.0 ± 1.0"]
    assert [row[1] for row in made[0].rows] == ["20.0 ± 10.0", "25.0 ± 9.5"]


def of_one_class(*miou: float, **changes: Any) -> Result:
    values = {"miou": miou, "accuracy": miou, "seeds": tuple(range(len(miou))), **changes}
    return make(**values)


def test_a_gain_shown_is_the_difference_of_the_figures_shown() -> None:
    rng = np.random.default_rng(5)
    for _ in range(200):
        ours, base = (of_one_class(*rng.uniform(10, 40, 2), pretrained=p, init=str(p)) for p in (True, False))
        (group,) = groups([ours, base])
        below, above = ([float(cell.split(" ±")[0]) for cell in row[1:3] if cell != "–"] for row in group.rows)
        assert round(above[0] - below[0], 1) == above[1]
        (tile,) = _tiles([group])
        assert f"{tile['gain'].split()[0]}" == f"{above[0] - below[0]:+.1f}"
        assert f"{above[0]:.1f} against {below[0]:.1f}" in tile["explanation"]
    assert METRICS["rmse"].difference_text(0.1234, 0.12341) == "+0.000"


def test_a_gain_over_some_of_the_seeds_is_marked() -> None:
    (group,) = groups([OURS, of_one_class(20.0, pretrained=False, init="random")])
    assert group.rows[1][2] == "+4.0 ?‡"  # 24 - 20 of seed 0; the row's mean is 25
    assert "not the difference of the two means shown" in markdown(list(group.results))


@pytest.mark.parametrize(
    ("gains", "settings", "labels", "expected"),
    [
        ((5.0, 5.5, 6.0), {"test_sweeps": 20, "train_sweeps": 20}, "all", ()),
        ((5.0, 5.5, 6.0), {"test_sweeps": 19, "train_sweeps": 20}, "all", ("only 19 sweeps in the test split",)),
        ((5.0, 5.5, 6.0), {"test_samples": 1, "train_samples": 9}, "1 frame", ("only 1 sample in the test split",)),
        ((5.0, 5.5, 6.0), {"test_sweeps": 99, "train_sweeps": 3}, "all", ("only 3 sweeps with labels",)),
        ((5.0, 5.5), {"test_sweeps": 99}, "all", ("only 2 paired runs",)),
        ((5.0,), {}, "all", ("only 1 paired run",)),
        # Student's t for 2 degrees of freedom, 95 %: 4.3027; mean 1, standard deviation 1: ± 2.484 contains 0.
        ((0.0, 1.0, 2.0), {}, "all", ("the 95 % interval over 3 paired runs, ± 2.5, contains 0",)),
        ((-2.0, -2.1, -2.2), {}, "all", ()),
    ],
)
def test_a_gain_that_may_be_chance_says_why(
    gains: tuple[float, ...], settings: dict[str, int], labels: str, expected: tuple[str, ...]
) -> None:
    base = of_one_class(*(20.0 for _ in gains), pretrained=False, settings=settings, labels=labels, init="random")
    ours = of_one_class(*(20.0 + gain for gain in gains), settings=settings, labels=labels)
    (group,) = groups([ours, base])
    assert group.doubts == ((), expected)
    text = markdown([ours, base])
    assert ("may be chance" in text) == (" ? |" in text) == bool(expected)
    (tile,) = _tiles([group])
    assert tile["direction"] == ("level" if expected else "up" if gains[0] > 0 else "down")
    assert all(why in text and why in tile["doubt"] for why in expected)


def test_every_measure_says_what_it_means_and_what_guessing_gives() -> None:
    for metric in METRICS.values():
        assert metric.meaning
        assert metric.guess
    sources = ReportSources(results=[OURS, RANDOM])
    for text in (markdown([OURS, RANDOM]), page(sources, [], "t", {})):
        assert METRICS["miou"].guess in text
        assert METRICS["accuracy"].meaning in text
        assert METRICS["rmse"].meaning not in text


def test_what_guessing_gives_is_true() -> None:
    """By simulation: classes at random and always the commonest, on 8 classes of uneven size."""
    rng = np.random.default_rng(6)
    shares = np.array([0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.03, 0.02])
    true = torch.from_numpy(rng.choice(8, 100_000, p=shares))
    for guess, low, high in (
        (torch.from_numpy(rng.integers(0, 8, 100_000)), 4.0, 100 / 15),
        (torch.zeros(100_000, dtype=torch.int64), 4.9, 5.1),  # 40 % / 8
    ):
        matrix = ConfusionMatrix(8, 255)
        matrix.update(guess, true)
        assert low < 100 * matrix.miou() <= high
    turns = np.abs((rng.uniform(-180, 180, 100_001) - rng.uniform(-180, 180, 100_001) + 180) % 360 - 180)
    assert abs(float(np.median(turns)) - 90) < 1.5


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/env/bin/tandem", "pretrain", "a b.yaml", "seed=1"], "tandem pretrain 'a b.yaml' seed=1"),
        (["/code/launchers/cli.py", "pretrain", "a.yaml"], "tandem pretrain a.yaml"),
        (["/code/launchers/pretrain.py", "a.yaml"], "tandem pretrain a.yaml"),
        (["/home/me/sweep_all.py", "a.yaml"], "/home/me/sweep_all.py a.yaml"),
        (None, "unknown"),
        ("tandem", "unknown"),
    ],
)
def test_a_runs_command_is_one_that_a_user_can_type(argv: object, expected: str) -> None:
    assert command_text(argv) == expected


@pytest.mark.parametrize("status", ["preempted", "failed", "finished"])
def test_a_run_that_was_stopped_is_not_shown_as_finished(tmp_path: Path, status: Any) -> None:
    write_toy_run(tmp_path / "run", str(tmp_path / "gone"))
    begin(tmp_path / "run", 1).end(status, step=12)
    assert tandem(["report", str(tmp_path), "--out-dir", str(tmp_path / "out"), "--pictures", "0"]) == 0
    for name in ("report.md", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        assert f"{status}, 12 of " in text
        assert ("finished" in text) == (status == "finished")


def test_best_rate_at_the_grids_end_is_marked_and_explained() -> None:
    text = markdown([make(lr_at_edge=True)])
    assert "0.01 *" in text
    assert "end of the grid" in text
    assert "end of the grid" not in markdown([make()])


def test_the_report_says_that_frozen_networks_came_out_as_they_were() -> None:
    said = "every parameter and buffer of the frozen network was bit-equal before and after"
    assert f"linear probe: {said}" in markdown([make(protocol="linear_probe", kept_frozen=True)])
    assert said not in markdown([make(protocol="linear_probe")])


def test_gather_takes_each_measurement_once_and_the_newest(tmp_path: Path) -> None:
    newer = make(miou=(50.0, 50.0, 50.0), date="2025-06-01T00:00:00+00:00")
    write_results(tmp_path / "b" / "results.json", [newer])
    write_results(tmp_path / "a" / "results.json", [make(), RANDOM])
    for order in (["a", "b"], ["b", "a"]):
        results, runs = gather([tmp_path / name for name in order])
        assert sorted(r.mean for r in results) == [20.0, 50.0]
        assert runs == {}


def test_runs_of_equal_name_are_told_apart(tmp_path: Path) -> None:
    for parent in ("x", "y"):
        (tmp_path / parent / "run").mkdir(parents=True)
        (tmp_path / parent / "run" / "metrics.jsonl").write_text("")
    assert list(gather([tmp_path])[1]) == ["x/run", "y/run"]


def test_mistakes_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["report", str(tmp_path)]) == 2
    assert "found neither results.json nor metrics.jsonl" in capsys.readouterr().err
    assert tandem(["report", str(tmp_path / "absent")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"schema_version": 7}')
    assert tandem(["report", str(tmp_path)]) == 2
    assert "schema_version is 7" in capsys.readouterr().err


def test_metrics_cut_short_by_a_crash_are_read_to_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 1, "time": 0.0, "train/loss": None})
    path.write_text(whole + '\n{"step": 2, "ti')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    path.write_text('{"step": 2, "ti\n' + whole)
    with pytest.raises(CheckpointError, match="line 1"):
        read_metrics(tmp_path)


def test_report_without_shards_says_why_pictures_are_missing(tmp_path: Path) -> None:
    write_toy_run(tmp_path / "run", str(tmp_path / "gone"))
    assert tandem(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 0
    assert "shards are not at" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 600.0), (2.1, 6.7), (-3.0, 1e-3), (5.0, 5.0), (0.0, 0.0), (1e-6, 3e-6), (1e9, 1e9 + 10)]
)
def test_ticks_span_the_values_at_round_equal_distances(low: float, high: float) -> None:
    found = ticks(low, high)
    steps = np.diff(found)
    assert found[0] <= low <= high <= found[-1]
    assert np.allclose(steps, steps[0])
    assert 2 <= len(found) <= 8
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1.0, 2.0, 2.5, 5.0, 10.0)) < 1e-3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 200.0, 400.0], ["0", "200", "400"]),
        ([0.0, 0.25, 0.5], ["0.00", "0.25", "0.50"]),
        ([0.0005, 0.00055, 0.0006], ["5.0e-4", "5.5e-4", "6.0e-4"]),
        ([0.0, 2.5, 5.0], ["0.0", "2.5", "5.0"]),
        ([0.0, 20_000.0], ["0k", "20k"]),
    ],
)
def test_tick_labels_tell_the_ticks_apart(values: list[float], expected: list[str]) -> None:
    assert tick_labels(values) == expected


def test_chart_breaks_the_line_where_a_value_is_missing() -> None:
    curve = RunCurve("run", [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, math.nan, 4.0, 5.0])
    run = RunReport("run", curves={"train/loss": (curve.steps, curve.values)})
    drawn = page(ReportSources(results=[]), [run], "t", {})
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 4
    assert chart("loss", [RunCurve("run", [1.0], [math.nan])], {"run": 0}) is None
    run = RunReport("run", curves={"train/loss": ([1.0], [math.nan])})
    assert "<svg" not in page(ReportSources(results=[]), [run], "t", {})


def test_curves_of_runs_are_told_apart_by_the_red_green_blind_too() -> None:
    css = Path(report_page.__file__).with_name("report.html.j2").read_text()
    found = [bytes.fromhex(value) for value in re.findall(r"--c\d: #([0-9a-f]{6})", css)]
    light, dark = (np.array([list(colour) for colour in found[at : at + 8]]) for at in (0, 8))
    assert len(found) == 16
    assert min(*least_distances(light).values(), *least_distances(dark).values()) > 18


def test_long_curves_are_averaged_not_sampled() -> None:
    steps = [float(s) for s in range(10_000)]
    values = [s % 2 for s in steps]
    short = thinned(RunCurve("run", steps, values))
    assert len(short.steps) <= MAX_POINTS
    assert np.allclose(short.values, 0.5, atol=0.02)


def test_report_takes_results_of_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "results.json", [OURS])
    assert tandem(["report", str(tmp_path / "results.json"), "--markdown"]) == 0
    assert "| 25.0 ± 9.5 |" in capsys.readouterr().out


# ---- sweeps

SETTINGS = {"a": "temperature=0.07", "b": "temperature=0.1"}


def of_run(setting: str, seed: int, step: int, miou: tuple[float, ...], *chosen: str) -> Result:
    return make(
        setting=setting,
        pretrain_seeds=(seed,),
        miou=miou,
        chosen=chosen,
        checkpoint=(f"{setting}{seed}/step_{step:08d} x",),
        pretraining=f"{step} steps, seed {seed}",
    )


def test_repetitions_become_one_row_with_the_spread_over_runs() -> None:
    runs = [of_run("a", seed, 400, (24.0 + seed, 36.0, 15.0)) for seed in (0, 1, 2)]
    (group,) = groups([*runs, RANDOM, of_run("b", 0, 400, (20.0, 30.0, 11.5))], SETTINGS)
    assert [r.init for r in group.results] == ["random", "slidr, temperature=0.1", "slidr, temperature=0.07"]
    merged, gain = group.results[2], group.gains[2]
    # By hand: means of the runs 25, 25.33, 25.67; random 20, 30, 10, so gains of 4, 6, 5; 5, 6, 5; 6, 6, 5.
    assert merged.values == pytest.approx((25.0, 25.0 + 1 / 3, 25.0 + 2 / 3))
    assert gain is not None
    assert gain.deltas == pytest.approx((4, 6, 5, 5, 6, 5, 6, 6, 5))
    assert (gain.independent, gain.std) == (3, pytest.approx(0.7071, abs=1e-4))
    assert merged.pretraining == "400 steps, 3 runs, seeds 0, 1, 2"
    assert group.gains[1] == paired_difference(of_run("b", 0, 400, (20.0, 30.0, 11.5)), RANDOM)
    assert "pre-training runs" in markdown([*runs, RANDOM])
    assert "pre-training runs" not in markdown([runs[0], RANDOM])


def test_runs_on_one_draw_are_not_independent_of_it() -> None:
    """Three runs of pre-training against one random network on one labelled frame."""
    settings = {"setting": "a", "seeds": (0,), "accuracy": (50.0,)}
    runs = [make(**settings, miou=(24.0 + n / 9,), pretrain_seeds=(n,), checkpoint=(f"{n}",)) for n in range(3)]
    (group,) = groups([*runs, of_one_class(20.0, pretrained=False, init="random")])
    assert group.doubts[1] == ("only 1 paired run",)


@pytest.mark.parametrize(
    ("others", "leads"),
    [
        ({}, True),
        ({"other": (23.0, 34.0, 15.2)}, True),  # 1.0, 1.0, 0.8 below
        ({"other": (20.0, 37.0, 14.0)}, False),  # worse in the mean, by less than the spread of the differences
        ({"other": (24.0, 35.0, 16.0)}, False),
    ],
)
def test_a_row_is_bold_only_beyond_the_spread(others: dict[str, tuple[float, ...]], leads: bool) -> None:
    rows = [make(init=name, miou=miou, checkpoint=(name,)) for name, miou in others.items()]
    (group,) = groups([make(miou=(24.0, 35.0, 16.0), checkpoint=("a",)), *rows, RANDOM])
    assert (group.leader is not None) == leads
    doubtful = make(miou=(19.0, 36.0, 12.0), checkpoint=("a",))
    assert groups([doubtful, RANDOM])[0].leader is None


def test_best_and_last_steps_have_rows_of_their_own() -> None:
    runs = [
        of_run("a", 0, 200, (40.0, 40.0, 40.0), "best"),
        of_run("a", 0, 400, (30.0, 30.0, 30.0), "last"),
        of_run("a", 1, 400, (50.0, 50.0, 50.0), "best", "last"),
        of_run("b", 0, 400, (10.0, 10.0, 10.0), "best", "last"),
    ]
    (group,) = groups(runs, SETTINGS)
    rows = [(r.init, r.values) for r in group.results]
    assert rows == [
        ("slidr, temperature=0.1, best and last step", (10.0, 10.0, 10.0)),
        ("slidr, temperature=0.07, last step", (30.0, 50.0)),
        ("slidr, temperature=0.07, best step", (40.0, 50.0)),
    ]
    assert "the test split had no say" in markdown(runs)


def test_records_without_a_setting_stay_rows_of_their_own() -> None:
    (group,) = groups([make(checkpoint=("x/1",)), make(checkpoint=("y/1",)), make(setting="a", pretrain_seeds=(0, 1))])
    assert len(group.results) == 3


def test_labels_tell_settings_apart_by_what_differs() -> None:
    def config(temperature: float, seed: int, **method: object) -> dict[str, Any]:
        return {"seed": seed, "run_dir": f"r{seed}", "optim": {"lr": 0.5}, "method": {"t": temperature} | method}

    one, two = config(0.07, 0), config(0.1, 1)
    assert setting_of_tree(one) == setting_of_tree(config(0.07, 5))
    assert setting_of_tree(one) != setting_of_tree(two)
    assert labels({"a": one, "b": two}) == {"a": "t=0.07", "b": "t=0.1"}
    assert labels({"a": one}) == {"a": ""}
    assert labels({}) == {}
    assert labels({"a": config(1.0, 0, name="m", k=1), "b": config(1.0, 0, name="n", j=[1])}) == {
        "a": "name=m",
        "b": "name=n",
    }


def test_only_rows_of_one_name_in_one_table_are_told_apart() -> None:
    def config(name: str, temperature: float, backbone: str) -> dict[str, Any]:
        return {"method": {"name": name, "t": temperature, "backbone": backbone}}

    configs = {
        "a": config("slidr", 0.07, "voxels"),
        "b": config("slidr", 0.1, "voxels"),
        "c": config("slidr", 0.07, "pillars"),  # measured by another protocol: its rows stand elsewhere
        "d": config("ppkt", 0.07, "voxels"),
        "e": config("slidr", 0.5, "voxels"),  # not measured
    }
    results = [make(setting=setting) for setting in "ab"]
    results += [make(setting="b", protocol="knn"), make(setting="c", protocol="finetune")]
    results += [make(setting="d", init="ppkt"), make(setting="gone")]
    assert told_apart(results, configs) == {"a": "t=0.07", "b": "t=0.1", "c": "", "d": ""}


def test_setting_of_a_config_is_that_of_its_file(tmp_path: Path) -> None:
    write_toy_run(tmp_path, str(tmp_path / "gone"))
    assert setting_of(run_config(tmp_path, str(tmp_path / "gone"))) == setting_of_tree(read_config(tmp_path))


def test_tables_of_long_names_fit_80_columns() -> None:
    runs = [of_run("a", s, 400, (24.0, 36.0, 15.0)) for s in (0, 1)]
    runs = [dataclasses.replace(r, teacher="efficientnet_lite0 (imagenet)", lr=(0.003, 0.01, 0.1)) for r in runs]
    console = Console(width=80, record=True, file=io.StringIO())
    print_table([*runs, RANDOM], console, {"a": "temperature=0.07, learning_rate=0.002"})
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for whole in ("temperature=0.07", "efficientnet_lite0", "(imagenet)", "25.0 ± 0.0", "0.003, 0.01, 0.1"):
        assert whole in text


def write_sweep(root: Path) -> None:
    """Two runs that were evaluated, one that failed, baselines beside them that one run needs and one nobody does."""
    for seed in (0, 1):
        run = root / f"a{seed}"
        write_toy_run(run, str(root / "gone"))
        config = yaml.safe_load((run / "config.yaml").read_text()) | {"seed": seed}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        result = dataclasses.replace(of_run(setting_of_tree(config), seed, 12, (24.0 + seed, 36.0, 15.0)))
        write_results(run / "evaluation" / "toy" / "results.json", [result])
    write_results(root / "baselines" / "k1" / "results.json", [RANDOM])
    write_results(root / "baselines" / "k2" / "results.json", [dataclasses.replace(RANDOM, fingerprint="other")])
    (root / "a1" / "evaluation" / "worse").mkdir()
    (root / "a1" / "evaluation" / "worse" / "error.txt").write_text("ShardError: nothing <b>there</b>\n\nTraceback\n")
    bad = root / "bad"
    record = begin(bad, 2, job="7_1")
    record.end("failed", step=3, reason="DivergenceError: loss not finite")
    write_jobs(bad, Jobs(pretrain="7_1", evaluate={"toy": "8_0"}, logs=str(bad)))


def test_a_sweep_is_grouped_and_failures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path / "sweep")
    out = tmp_path / "out"
    assert tandem(["report", str(tmp_path / "sweep"), "--out-dir", str(out), "--pictures", "0"]) == 0
    terminal = capsys.readouterr().out
    html = " ".join(parse((out / "report.html").read_text()).text)
    for text in (terminal, (out / "report.md").read_text(), html):
        assert "25.2 ± 0.2" in text  # means of the runs: 25 and 25.33
        assert "DivergenceError: loss not finite" in text
        assert "ShardError: nothing" in text
        assert "1 of 1 evaluations did not run" in text
    assert "2 runs, seeds 0, 1" in html
    assert (out / "report.md").read_text().count("| random |") == 1
    # One run alone finds the baselines beside it.
    results, _ = gather([tmp_path / "sweep" / "a0"])
    assert [r.init for r in results] == ["slidr", "random"]


def test_baselines_alone_are_shown(tmp_path: Path) -> None:
    write_results(tmp_path / "baselines" / "k1" / "results.json", [RANDOM])
    assert gather([tmp_path])[0] == [RANDOM]


@pytest.mark.slow
def test_tensorboard_lists_the_hyper_parameters(tmp_path: Path) -> None:
    """Asked over HTTP, as its page does."""
    write_sweep(tmp_path)
    for _ in range(2):  # the second report replaces the first one's table
        write_report([tmp_path], tmp_path, title="t", pictures=0)
    assert sorted(p.name for p in (tmp_path / "hparams").iterdir()) == ["a0", "a1"]
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path), "--port", str(port)]
    with subprocess.Popen(
        [*command, "--load_fast=false"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as board:
        try:
            sessions = ask(port, "session_groups", EVERYTHING)["sessionGroups"]
            names = [column["name"] for column in ask(port, "experiment", {})["hparamInfos"]]
        finally:
            board.terminate()
    assert {"method.name", "optim.lr", "seed"} <= set(names)
    assert sorted(s["name"] for s in sessions) == ["hparams/a0", "hparams/a1"]
    found = {s["hparams"]["seed"]: {m["name"]["tag"]: m["value"] for m in s["metricValues"]} for s in sessions}
    assert found[0.0]["eval/toy/linear_probe/all/miou"] == pytest.approx(25.0)
    assert found[1.0]["eval/toy/linear_probe/all/gain"] == pytest.approx(5 + 1 / 3)


EVERYTHING = {
    "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
    "colParams": [],
    "startIndex": 0,
    "sliceSize": 100,
}


def ask(port: int, what: str, query: dict[str, Any]) -> dict[str, Any]:
    """An answer of the HParams plugin with something in it; it takes a while to load the runs."""
    url = f"http://127.0.0.1:{port}/data/plugin/hparams/{what}"
    body = json.dumps({"experimentName": "", **query}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    end = time.monotonic() + 60
    answer: dict[str, Any] = {}
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                answer = json.load(reply)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()) from error
        except OSError:  # not listening yet
            answer = {}
        if any(answer.get(key) for key in ("hparamInfos", "sessionGroups")):
            return answer
        time.sleep(0.5)
    raise AssertionError(f"{what}: {answer}")
