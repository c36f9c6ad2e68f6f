"""What detectors gain from pre-training when every start has the learning rate that suits it.

    tandem prepare synthetic - runs/street/shards
    tandem sweep configs/sweep/detectors_street.yaml --local --no-evaluate     # the pre-training runs
    python -m benchmarks.detector_rates --sweep runs/sweep_detectors --shards runs/street/shards

For each detector, number of labelled frames and start (random weights, and each method of the sweep) every rate is
tried with a seed, draw of labels and pre-training run of its own, judged on frames of another street world. The best
rate then trains with each of the seeds, judged on the set's val split: the numbers of the table, which say at which
rate they were reached. Differences to random weights are paired by seed (the same draw of labels) and bold beyond
chance, by the rule that reports use. Each training is a process of `tandem finetune`; stopped and called again it goes
on. The table goes to rates.md in the folder and to the terminal, also while seeds are missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import REPOSITORY, markdown, setting
from common.run_files import json_lines
from engine.downstream.results import Difference
from launchers.reporting.doubts import LEAST_PAIRS, half_interval
from launchers.runs.files import DETECTIONS_FILE

DETECTORS = {"voxels": ("second_street", "kitti"), "pillars": ("centerpoint_street", "nuscenes")}
"""Last word of a run's name in the sweep, for its 3D network -> the detector on it, and the metric that it is judged
by."""
RANDOM = "random"
TUNING_SEED = 100
TABLE = "rates.md"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Where things lie, and what is compared.

    Attributes:
        sweep: folder of the pre-training runs, <method>_<network>-seed_<n>.
        shards: set that detectors are trained and judged on.
        out: folder of the trainings.
        networks: keys of `DETECTORS`.
        methods: of the sweep.
        labels: numbers of labelled frames.
        rates: that are tried.
        seeds: of the trainings that count.
        overrides: for all trainings.
    """

    sweep: Path
    shards: str
    out: Path
    networks: tuple[str, ...]
    methods: tuple[str, ...]
    labels: tuple[int, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]

    @property
    def other_world(self) -> Path:
        """The set that rates are chosen on."""
        return self.out / "other_world"

    def starts(self) -> tuple[str, ...]:
        """What trainings start from."""
        return (RANDOM, *self.methods)

    def cells(self) -> Iterator[tuple[str, int]]:
        """Networks and numbers of labels."""
        return ((network, count) for network in self.networks for count in self.labels)

    def value(
        self, network: str, count: int, start: str, rate: float, seed: int, *, run_seed: int, tuning: bool = False
    ) -> float:
        """The figure of one training, percent; trains where that is not done."""
        folder = self.folder(network, count, start, rate, seed, tuning=tuning)
        config, benchmark = DETECTORS[network]
        if (known := figure(folder, benchmark)) is not None:
            return known
        init = RANDOM if start == RANDOM else self.sweep / f"{start}_{network}-seed_{run_seed}"
        judged = (f"judge.shards={self.other_world}", "judge.split=train+val") if tuning else ()
        command = [
            *(sys.executable, "-m", "launchers.finetune", config, f"run_dir={folder}", f"init={init}"),
            *(f"data.shards={self.shards}", f"seed={seed}", f"optim.lr={rate:g}"),
            *("data.fraction.kind=random", f"data.fraction.count={count}", f"data.fraction.seed={seed}"),
            *(f"judge.benchmarks=[{benchmark}]", "judge.every_epochs=0", *judged, *self.overrides),
        ]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
        found = figure(folder, benchmark)
        if found is None:
            raise RuntimeError(f"{folder}: the training left no judgement")
        return found

    def folder(self, network: str, count: int, start: str, rate: float, seed: int, *, tuning: bool) -> Path:
        """Of one training."""
        name = f"{network}-{count}_frames-{start}-lr_{rate:g}-seed_{seed}"
        return (self.out / ("tuning" if tuning else "trained") / name).absolute()


def figure(folder: Path, benchmark: str) -> float | None:
    """First headline figure of a finished training, percent; None before its end. No number counts as 0."""
    file = folder / DETECTIONS_FILE
    lines = list(json_lines(file.read_text().splitlines())) if file.is_file() else []
    if not lines:
        return None
    verdict = lines[-1]["benchmarks"][benchmark]
    value = next(iter(verdict["headline"].values()))
    return 0.0 if value is None else value * (1 if verdict["unit"] == "%" else 100)


def best_rates(study: Study) -> dict[tuple[str, int, str], dict[float, float]]:
    """Figure on the other world of every (network, labels, start) by rate."""
    return {
        (network, count, start): {
            rate: study.value(network, count, start, rate, TUNING_SEED, run_seed=0, tuning=True) for rate in study.rates
        }
        for network, count in study.cells()
        for start in study.starts()
    }


def best(tried: dict[float, float]) -> float:
    """Rate of the highest figure; of equal ones the lowest."""
    return max(sorted(tried), key=lambda rate: tried[rate])


def difference_text(deltas: Sequence[float]) -> str:
    """Mean and spread, bold where it is beyond chance."""
    if not deltas:
        return ""
    gain = Difference(deltas=tuple(deltas), independent=len(deltas), value=math.nan, reference=math.nan)
    spread = "" if gain.std is None else f" ± {gain.std:.1f}"
    beyond = gain.independent >= LEAST_PAIRS and abs(gain.mean) > half_interval(gain)
    return f"**{gain.mean:+.1f}{spread}**" if beyond else f"{gain.mean:+.1f}{spread}"


def table(study: Study, tuned: dict[tuple[str, int, str], dict[float, float]]) -> str:
    """Of what is trained so far."""
    rows = []
    for (network, count, start), tried in tuned.items():
        config, benchmark = DETECTORS[network]
        own, reference = (_values(study, network, count, name, tuned) for name in (start, RANDOM))
        if not own:
            continue
        deltas = [own[seed] - reference[seed] for seed in own if seed in reference and start != RANDOM]
        spread = f" ± {statistics.stdev(own.values()):.1f}" if len(own) > 1 else ""
        tries = ", ".join(f"{rate:g}: {value:.1f}" for rate, value in tried.items())
        rows.append(
            [
                *(f"{config}, {benchmark}", str(count), start, f"{best(tried):g}"),
                *(f"{statistics.fmean(own.values()):.1f}{spread}", difference_text(deltas), str(len(own)), tries),
            ]
        )
    header = ("detector, metric", "frames", "start", "rate", "%", "over random", "seeds", "% elsewhere by rate")
    return markdown(header, rows)


def _values(
    study: Study, network: str, count: int, start: str, tuned: dict[tuple[str, int, str], dict[float, float]]
) -> dict[int, float]:
    """Figures of the trainings that count, by seed, as far as they are there."""
    rate, benchmark = best(tuned[network, count, start]), DETECTORS[network][1]
    found = {
        seed: figure(study.folder(network, count, start, rate, seed, tuning=False), benchmark) for seed in study.seeds
    }
    return {seed: value for seed, value in found.items() if value is not None}


def main() -> None:
    """Read the command line; tune, train, write the table after each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=Path, default=Path("runs/sweep_detectors"), help="folder of pre-training runs")
    parser.add_argument("--shards", required=True, help="a prepared street set")
    parser.add_argument("--out", type=Path, default=Path("runs/detector_rates"))
    parser.add_argument("--networks", nargs="+", choices=sorted(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--methods", nargs="+", default=["slidr", "contrastive_units", "segcontrast"])
    parser.add_argument("--labels", nargs="+", type=int, default=[10, 50], help="numbers of labelled frames")
    parser.add_argument("--rates", nargs="+", type=float, default=[0.001, 0.003, 0.01])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="for all trainings")
    args = parser.parse_intermixed_args()
    study = Study(
        sweep=args.sweep.absolute(),
        shards=str(Path(args.shards).absolute()),
        out=args.out,
        networks=tuple(args.networks),
        methods=tuple(args.methods),
        labels=tuple(args.labels),
        rates=tuple(args.rates),
        seeds=tuple(args.seeds),
        overrides=("schedule.steps=180", "judge.limit=24", "monitor.log_every=20", *args.overrides),
    )
    study.out.mkdir(parents=True, exist_ok=True)
    where = setting(0)
    prepare = ("launchers.prepare", "synthetic", "-", str(study.other_world), "set.seed=1000", "set.num_logs=6")
    if not study.other_world.is_dir():
        subprocess.run([sys.executable, "-m", *prepare], cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    tuned = best_rates(study)
    (study.out / "tuning.json").write_text(json.dumps([[*key, values] for key, values in tuned.items()], indent=1))
    for seed in study.seeds:
        for (network, count, start), tried in tuned.items():
            study.value(network, count, start, best(tried), seed, run_seed=seed)
        text = f"{where}; chosen on another world with seed {TUNING_SEED}\n\n{table(study, tuned)}\n"
        (study.out / TABLE).write_text(text)
        print(text, flush=True)


if __name__ == "__main__":
    main()
