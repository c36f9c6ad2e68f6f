from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from engine.downstream.results import write_results
from launchers.cli import main as tandem
from launchers.curves import MAX_POINTS, Curve, chart, thinned, tick_labels, ticks
from launchers.report import gather, read_metrics
from launchers.report_page import RunReport, page
from launchers.table import groups, markdown
from tests.engine.downstream.test_results import make
from tests.helpers.run_folder import write_toy_run
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
    assert "25.0 ± 9.5" in terminal
    assert "+5.0 ± 1.0" in terminal
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
    parsed = parse(page(evil, {"date": evil}, [result], [run]))
    assert all(address.startswith("data:image/") for address in parsed.addresses)
    assert "<img" not in markdown([result])
    assert all(line.count("|") - line.count("\\|") == 9 for line in markdown([result]).splitlines() if line[:1] == "|")


def test_groups_hold_only_what_may_be_compared() -> None:
    other = make(fingerprint="g", init="other")
    made = groups([OURS, other, RANDOM])
    assert [[r.init for r in g.results] for g in made] == [["random", "slidr"], ["other"]]
    assert made[1].gains == (None,)
    assert [row[2] for row in made[0].rows] == ["–", "+5.0 ± 1.0"]
    assert [row[1] for row in made[0].rows] == ["20.0 ± 10.0", "25.0 ± 9.5"]


def test_best_rate_at_the_grids_end_is_marked_and_explained() -> None:
    text = markdown([make(lr_at_edge=True)])
    assert "0.01 *" in text
    assert "end of the grid" in text
    assert "end of the grid" not in markdown([make()])


def test_gather_takes_each_measurement_once_and_the_newest(tmp_path: Path) -> None:
    newer = make(miou=(50.0, 50.0, 50.0), date="2025-06-01T00:00:00+00:00")
    write_results(tmp_path / "b" / "results.json", [newer])
    write_results(tmp_path / "a" / "results.json", [make(), RANDOM])
    for order in (["a", "b"], ["b", "a"]):
        results, runs = gather([tmp_path / name for name in order])
        assert sorted(r.miou_mean for r in results) == [20.0, 50.0]
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
    assert [line["step"] for line in read_metrics(path)] == [1]
    path.write_text('{"step": 2, "ti\n' + whole)
    with pytest.raises(ValueError, match="line 1"):
        list(read_metrics(path))


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
    curve = Curve("run", [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, math.nan, 4.0, 5.0])
    drawn = chart("loss", [curve], {"run": 0})
    assert drawn.count("<polyline") == 2
    assert drawn.count("<circle") == 4
    assert chart("loss", [Curve("run", [1.0], [math.nan])], {"run": 0}) == ""


def test_long_curves_are_averaged_not_sampled() -> None:
    steps = [float(s) for s in range(10_000)]
    values = [s % 2 for s in steps]
    short = thinned(Curve("run", steps, values))
    assert len(short.steps) <= MAX_POINTS
    assert np.allclose(short.values, 0.5, atol=0.02)


def test_report_takes_results_of_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(tmp_path / "results.json", [OURS])
    assert tandem(["report", str(tmp_path / "results.json"), "--markdown"]) == 0
    assert "| 25.0 ± 9.5 |" in capsys.readouterr().out
