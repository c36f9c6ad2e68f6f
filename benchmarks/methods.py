"""All methods of a sweep under one protocol: trains, evaluates, and writes one table.

    python -m benchmarks.methods --shards runs/street/shards                  # a night on two CPU cores
    python -m benchmarks.methods --shards runs/street/shards --short          # one seed of pre-training tells no gain
    python -m benchmarks.methods --shards runs/street/shards --short --seeds 0 1 2
    python -m benchmarks.methods --shards runs/street/shards --sweep configs/sweep/modalities.yaml
    python -m benchmarks.methods --shards runs/street/shards --sweep configs/sweep/image_methods.yaml
    python -m benchmarks.methods --shards runs/street/shards --sweep configs/sweep/teachers.yaml

Runs `tandem sweep` on this machine, one run at a time, then reads what the runs left: results.json of evaluations and
of random initialisation, metrics.jsonl of training. Stopped and called again it continues; `--table` only reads.
Without --shards a small set is made in the sweep's folder first. The table goes to methods.md there and to the
terminal.

Columns: the main metric of each protocol on the test split, where none is named mIoU in percent; mean and standard
deviation over the pre-training seeds, each with the mean over its protocol's own (of random initialisation: over its
own); medians of the time of an update, data wait included; highest resident memory of the training process; collapse
watch, mean over the last tenth of the run, which says how easy a method's own task has become and cannot be compared
between tasks.

A second table has the differences to random initialisation: each run on each draw of labels against a random network on
the same draw, mean and standard deviation over all of them. Bold: beyond chance, by the rule that reports use
(`launchers.reporting.doubts`). Only those are gains.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import REPOSITORY, markdown, setting, street_set
from common.run_files import RESULTS_FILE
from configs.load import ConfigError, load
from configs.schema import SweepConfig, SweepRunConfig
from engine.downstream.metrics import METRICS
from engine.downstream.protocols import PROTOCOLS
from engine.downstream.results import Result, baseline_of, read_results
from engine.metric_names import RSS_GIB, STEP_S, WATCH
from launchers.cli import FAILURE
from launchers.cluster.plan_submission import SubmitRequest, with_first_stages
from launchers.cluster.submission import submit
from launchers.reporting.doubts import doubts
from launchers.reporting.repetitions import gain_of
from launchers.runs.files import BASELINES, EVALUATIONS, read_metrics
from launchers.submit import load_cluster
from launchers.sweep import points
from launchers.training.train import load_run

SWEEP = REPOSITORY / "configs" / "sweep" / "all_methods.yaml"
TABLE = "methods.md"
SHORT_RUNS = (
    "schedule.steps=120",
    "schedule.warmup_steps=10",
    "evaluate.fractions=[1,10]",
    'evaluate.overrides=["linear_probe.seeds=[0,1,2]","knn.seeds=[0,1,2]","finetune.tune_seeds=[0]",'
    '"finetune.lrs=[0.003,0.01]","finetune.steps=40","data.limit_train=96","data.limit_test=24"]',
)
"""Fewer updates and sweeps; a tenth of 96 sweeps is 10."""
SHORT_FIRST = 'first.overrides=["schedule.steps=120","evaluate.configs=[]"]'
"""For runs of two stages."""
WATCHED = ("contrastive_accuracy", "alignment", "effective_rank")
_LAST = 0.1


class TrainingFigures(NamedTuple):
    """What a run's own log says: median of a step, highest memory, and means over the end of the run.

    Of `watch`, by name, those numbers are absent that the method does not have.
    """

    step_ms: float
    memory_gib: float
    watch: Mapping[str, float]


class Column(NamedTuple):
    """What a score is of: protocol, labels used, main metric."""

    protocol: str
    labels: str
    metric: str

    @property
    def title(self) -> str:
        """Heading in the table."""
        labels = "" if self.labels == "all" else f", {self.labels}"
        metric = "" if self.metric == "miou" else f", {METRICS[self.metric].heading}"
        return self.protocol.replace("_", " ") + labels + metric

    @property
    def place(self) -> tuple[int, int, str]:
        """Protocols in their order; from few to many labels, all last."""
        number = next((int(word) for word in self.labels.split() if word.isdigit()), sys.maxsize)
        return list(PROTOCOLS).index(self.protocol), number, self.labels

    def text(self, values: Sequence[float]) -> str:
        """Mean and standard deviation; empty where nothing was measured."""
        if not values:
            return ""
        return METRICS[self.metric].text(statistics.fmean(values), statistics.stdev(values) if values[1:] else None)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        name: of the method or its variant.
        scores: column -> value of each pre-training seed.
        gains: column -> the same over random initialisation; empty for random initialisation itself.
        training: one a run; () for random initialisation.
    """

    name: str
    scores: Mapping[Column, tuple[float, ...]]
    gains: Mapping[Column, str] = field(default_factory=dict)
    training: tuple[TrainingFigures, ...] = ()


def training_figures(run_dir: Path) -> TrainingFigures | None:
    """Of a run's folder; None before the first line of its metrics."""
    lines = read_metrics(run_dir)
    if not lines:
        return None
    end = lines[-max(1, round(_LAST * len(lines))) :]
    watch = {
        name: statistics.fmean(line[WATCH + name] for line in end)
        for name in WATCHED
        if all(WATCH + name in line for line in end)
    }
    step_ms = 1e3 * statistics.median(line[STEP_S] for line in lines)
    return TrainingFigures(step_ms, max(line[RSS_GIB] for line in lines), watch)


def column_of(result: Result) -> Column:
    """The column that a record belongs to."""
    return Column(result.protocol, result.labels, result.metric)


def newest(results: Iterable[Result]) -> dict[Column, Result]:
    """Of records that replace each other, the newest."""
    found: dict[Column, Result] = {}
    for result in results:
        column = column_of(result)
        if column not in found or result.date >= found[column].date:
            found[column] = result
    return found


def gain_text(runs: Sequence[Result], baselines: Sequence[Result]) -> str:
    """Mean and spread of the paired differences to random initialisation, bold beyond chance; "" without a baseline."""
    gain = gain_of(runs, baselines)
    if gain is None:
        return ""
    text = runs[0].measure.difference_text(gain.value, gain.reference, gain.std)
    return text if doubts(runs[0], gain) else f"**{text}**"


def rows_of(sweep: SweepConfig, run_dirs: Sequence[Path]) -> list[Row]:
    """Random initialisation, then the sweep's runs in their order, seeds of one run together."""
    runs: dict[str, list[Path]] = defaultdict(list)
    for folder in run_dirs:
        runs[folder.name.rpartition("-seed_")[0] or folder.name].append(folder)
    baselines = _results_in(Path(sweep.root) / BASELINES)
    rows: list[Row] = []
    measured: dict[str, list[Result]] = {}
    for name, folders in runs.items():
        records: dict[Column, list[Result]] = defaultdict(list)
        measured[name] = []
        for folder in folders:
            results = _results_in(folder / EVALUATIONS)
            measured[name] += results
            for column, result in newest(results).items():
                records[column].append(result)
        training = tuple(found for folder in folders if (found := training_figures(folder)) is not None)
        if records or training:
            scores = {column: tuple(r.mean for r in of_runs) for column, of_runs in records.items()}
            gains = {column: gain_text(of_runs, baselines) for column, of_runs in records.items()}
            rows.append(Row(name=name, scores=scores, gains=gains, training=training))
    return [*_random_rows(measured, baselines), *rows]


def _random_rows(measured: Mapping[str, Sequence[Result]], baselines: Sequence[Result]) -> list[Row]:
    """One row a network and voxels; where runs differ in these, it says for which of them it is."""
    groups: list[tuple[list[str], dict[Column, Result]]] = []
    for name, results in measured.items():
        found = (baseline_of(result, baselines) for result in results)
        beside = {column_of(baseline): baseline for baseline in found if baseline is not None}
        if not beside:
            continue
        for names, known in groups:
            if all(known[c].fingerprint == beside[c].fingerprint for c in known.keys() & beside.keys()):
                names.append(name)
                known.update(beside)
                break
        else:
            groups.append(([name], beside))
    return [
        Row(
            name="random" if len(groups) == 1 else f"random ({', '.join(names)})",
            scores={column: baseline.values for column, baseline in known.items()},
        )
        for names, known in groups
    ]


def _results_in(folder: Path) -> list[Result]:
    return [result for file in sorted(folder.glob(f"*/{RESULTS_FILE}")) for result in read_results(file)]


def table_of(rows: Sequence[Row]) -> str:
    """The table; empty cells where nothing was measured."""
    columns = sorted({column for row in rows for column in row.scores}, key=lambda column: column.place)
    watched = (name.replace("_", " ") for name in WATCHED)
    header = ["method", *(column.title for column in columns), "ms a step", "GiB", *watched]
    lines = []
    for row in rows:
        cells = [row.name, *(column.text(row.scores.get(column, ())) for column in columns)]
        cells.append(_mean([t.step_ms for t in row.training], "{:.0f}"))
        cells.append(_mean([t.memory_gib for t in row.training], "{:.1f}"))
        watches = ([t.watch[name] for t in row.training if name in t.watch] for name in WATCHED)
        lines.append([*cells, *(_mean(values, "{:.2f}") for values in watches)])
    return markdown(header, lines)


def gains_table(rows: Sequence[Row]) -> str:
    """Differences to random initialisation; "" where there are none."""
    columns = sorted({column for row in rows for column in row.gains}, key=lambda column: column.place)
    lines = [[row.name, *(row.gains.get(column, "") for column in columns)] for row in rows if row.gains]
    return markdown(["over random initialisation", *(column.title for column in columns)], lines) if lines else ""


def _mean(values: Sequence[float], form: str) -> str:
    return form.format(statistics.fmean(values)) if values else ""


def _shortened(run: SweepRunConfig) -> SweepRunConfig:
    """With a short first stage, where the run has one."""
    if load_run(run.base).first is None:
        return run
    return replace(run, overrides=(*run.overrides, SHORT_FIRST))


def main() -> int:
    """Parse, run what is not done, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", default=str(SWEEP), help="YAML file of the sweep (default: all methods)")
    parser.add_argument("--shards", help="a prepared set of the street world (without: 48 sweeps are made)")
    parser.add_argument("--root", help="folder of the sweep instead of the file's")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these runs of the sweep")
    parser.add_argument("--short", action="store_true", help="fewer updates and sweeps, one seed of pre-training")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="of pre-training, instead of the sweep's")
    parser.add_argument("--table", action="store_true", help="train nothing, read what is there")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="for all runs")
    options = parser.parse_intermixed_args()
    seeds = options.seeds or ([0] if options.short else None)
    sweep = load(SweepConfig, options.sweep, [f"grid.seed={seeds}"] if seeds else ())
    unknown = sorted(set(options.only or ()) - set(sweep.runs))
    if unknown:
        parser.error(f"--only {unknown[0]}: expected names among {', '.join(sweep.runs)}")
    root = Path(options.root or (f"{sweep.root}_short" if options.short else sweep.root))
    chosen = {name: run for name, run in sweep.runs.items() if not options.only or name in options.only}
    if options.short:
        chosen = {name: _shortened(run) for name, run in chosen.items()}
    sweep = replace(sweep, root=str(root), runs=chosen)
    made_before = options.table or (root / "shards").is_dir()
    shards = root / "shards" if made_before and not options.shards else street_set(options.shards, root)
    overrides = [f"data.shards={shards}", *(SHORT_RUNS if options.short else ()), *options.overrides]
    try:
        made = points(sweep, overrides)
    except ConfigError as error:
        parser.error(str(error))
    done = True
    if not options.table:
        root.mkdir(parents=True, exist_ok=True)
        cluster = load_cluster(None, (), nodes=None, where="local")  # one run at a time
        done = submit(SubmitRequest(points=with_first_stages(made), root=root, cluster=cluster, where="local"))
    rows = rows_of(sweep, [point.run_dir for point in made])
    if options.table and not rows:
        parser.error(f"--table: {root} holds nothing of these runs, expected what a call without --table leaves there")
    text = f"{setting(0)}; {len(sweep.grid.get('seed', ()))} seed(s), {made[0].config.schedule.steps} updates\n\n"
    text += f"{table_of(rows)}\n\n{gains_table(rows)}\n"
    (root / TABLE).write_text(text)
    print(text)
    return 0 if done else FAILURE


if __name__ == "__main__":
    sys.exit(main())
