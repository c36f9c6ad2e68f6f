"""`tandem demo`: the whole main job on the built-in street world, as the ordinary commands a user would type."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.rule import Rule

from launchers.cli import main as tandem
from launchers.options.demo import parser
from launchers.runs.terminal import terminal

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class DemoCommand:
    """One command of the demo.

    Attributes:
        about: what it does and what it leaves, one line.
        share: its share of the demo's time, for the estimate.
    """

    title: str
    about: str
    argv: tuple[str, ...]
    share: float


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much the demo does.

    Attributes:
        logs: drives of the street world.
        frames: sweeps a drive.
        seeds: pre-training runs with different seeds.
        controls: also pre-train with a teacher of random weights.
        minutes: what it takes on 2 CPU cores, for the first estimate.
        shares: of that time, all of preparing, pre-training, evaluating and reporting.
        evaluate: overrides of the downstream protocols.
    """

    logs: int
    frames: int
    steps: int
    seeds: int
    controls: bool
    minutes: float
    shares: tuple[float, float, float, float]
    evaluate: tuple[str, ...] = ()


NORMAL = DemoSize(logs=50, frames=6, steps=400, seeds=1, controls=False, minutes=11.0, shares=(0.08, 0.38, 0.53, 0.01))
FULL = DemoSize(logs=50, frames=6, steps=400, seeds=3, controls=True, minutes=45.0, shares=(0.1, 0.5, 0.38, 0.02))
_FEW_STEPS = ("finetune.steps=10", "finetune.lrs=[0.003]", "finetune.seeds=[0]")
SHORT = DemoSize(
    logs=8,
    frames=3,
    steps=30,
    seeds=1,
    controls=False,
    minutes=2.0,
    shares=(0.14, 0.34, 0.47, 0.05),
    evaluate=_FEW_STEPS,
)


def commands(root: Path, size: DemoSize) -> list[DemoCommand]:
    """The commands of a demo, in order."""
    shards = str(root / "shards")
    preparing, training, evaluating, reporting = size.shares
    world = ("prepare", "synthetic", "-", shards, f"num_logs={size.logs}", f"frames_per_log={size.frames}")
    about = f"drives {size.logs} logs of {size.frames} sweeps through the built-in world, into {shards}"
    made = [DemoCommand("street world to shards", about, world, share=preparing)]
    # Probes on frozen features take one network each, so their seeds are those of pre-training.
    seeds = str(list(range(size.seeds))).replace(" ", "")
    evaluation = (
        *(str(CONFIGS / "downstream" / "street.yaml"), f"results={root / 'results.json'}"),
        *(f"linear_probe.seeds={seeds}", f"knn.seeds={seeds}"),
        *size.evaluate,
    )
    methods: list[tuple[str, tuple[str, ...]]] = [("slidr", ())]
    if size.controls:
        methods.append(("random-teacher", ("method.teacher.weights=random",)))
    for name, overrides in methods:
        runs = [str(root / f"{name}-seed{seed}") for seed in range(size.seeds)]
        for seed, run in enumerate(runs):
            argv = (
                *("pretrain", str(CONFIGS / "pretrain" / "slidr_street.yaml")),
                *(f"data.shards={shards}", f"run_dir={run}", f"seed={seed}"),
                *(f"schedule.steps={size.steps}", *overrides),
            )
            about = f"{size.steps} updates without labels; the loss should fall; checkpoints in {run}"
            share = training / (len(runs) * len(methods))
            made.append(DemoCommand(f"pre-train {Path(run).name}", about, argv, share=share))
        about = "linear probe, kNN and fine-tuning on one labelled sweep, from these weights and from random ones"
        argv = ("evaluate", *runs, *evaluation)
        made.append(DemoCommand(f"evaluate {name} beside random", about, argv, share=evaluating / len(methods)))
    argv = ("report", str(root), "--out", str(root / "report.html"))
    made.append(DemoCommand("report", "tables, curves and pictures in one file", argv, share=reporting))
    return made


def time_left(minutes: float, done: float, elapsed: float) -> str:
    """How long the rest takes: as planned at first, more and more at this machine's pace, wholly from a quarter on.

    Args:
        minutes: of the whole demo, as planned.
        done: share that is done.
        elapsed: minutes since the start.
    """
    trust = min(1.0, 4 * done)
    pace = elapsed / done if done > 0 else minutes
    left = (1 - done) * (trust * pace + (1 - trust) * minutes)
    return "under a minute" if left < 1 else f"about {left:.0f} min"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code of the first command that failed, or 0."""
    options = parser().parse_args(argv)
    size = FULL if options.full else SHORT if options.short else NORMAL
    root = Path(options.root)
    console = terminal()
    todo = commands(root, size)
    start, finished, typed = time.monotonic(), 0.0, sys.argv
    for number, stage in enumerate(todo, 1):
        began = time.monotonic()
        left = time_left(size.minutes, finished, (began - start) / 60)
        console.print(Rule(f"[bold]{number}/{len(todo)} {stage.title}[/] · {left} left", align="left"))
        console.print(stage.about, markup=False)
        console.print(f"$ tandem {shlex.join(stage.argv)}", style="dim", markup=False, soft_wrap=True)
        sys.argv = ["tandem", *stage.argv]  # what a run records as its command: one that a user can type
        try:
            code = tandem(stage.argv)
        finally:
            sys.argv = typed
        if code != 0:
            return code
        console.print(f"took {time.monotonic() - began:.0f} s", style="dim")
        finished += stage.share
    page = (root / "report.html").resolve()
    console.print(
        f"done in {(time.monotonic() - start) / 60:.1f} min · open {page} in a browser", markup=False, soft_wrap=True
    )
    console.print(f"curves and pictures: tensorboard --logdir {root}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
