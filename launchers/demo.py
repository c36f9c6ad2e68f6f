"""`tandem demo`: the whole main job on the built-in street world, as the ordinary commands a user would type."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from launchers.cli import main as tandem
from launchers.options.demo import parser

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@dataclass(frozen=True)
class DemoCommand:
    """One command of the demo.

    Attributes:
        share: its share of the demo's time on the reference machine (2 CPU cores), for the estimate.
    """

    title: str
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
        evaluate: overrides of the downstream protocols.
    """

    logs: int
    frames: int
    steps: int
    seeds: int
    controls: bool
    minutes: float
    evaluate: tuple[str, ...] = ()


NORMAL = DemoSize(logs=50, frames=6, steps=400, seeds=1, controls=False, minutes=10.0)
FULL = DemoSize(logs=50, frames=6, steps=400, seeds=3, controls=True, minutes=35.0)
_FEW_STEPS = ("finetune.steps=10", "finetune.lrs=[0.003]", "finetune.seeds=[0]")
SHORT = DemoSize(logs=8, frames=3, steps=30, seeds=1, controls=False, minutes=2.0, evaluate=_FEW_STEPS)


def commands(root: Path, size: DemoSize) -> list[DemoCommand]:
    """The commands of a demo, in order."""
    shards = str(root / "shards")
    world = ("prepare", "synthetic", "-", shards, f"num_logs={size.logs}", f"frames_per_log={size.frames}")
    made = [DemoCommand("street world to shards", world, share=0.1)]
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
            made.append(DemoCommand(f"pre-train {Path(run).name}", argv, share=0.5 / (len(runs) * len(methods))))
        argv = ("evaluate", *runs, *evaluation)
        made.append(DemoCommand(f"evaluate {name} beside random", argv, share=0.38 / len(methods)))
    made.append(DemoCommand("report", ("report", str(root), "--out", str(root / "report.html")), share=0.02))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code of the first command that failed, or 0."""
    options = parser().parse_args(argv)
    size = FULL if options.full else SHORT if options.short else NORMAL
    root = Path(options.root)
    console = Console()
    todo = commands(root, size)
    start, left = time.monotonic(), 1.0
    for number, stage in enumerate(todo, 1):
        minutes = (time.monotonic() - start) / 60
        # The plan's own estimate until a quarter is done, then this machine's pace.
        estimate = size.minutes * left if left > 0.75 else minutes * left / (1 - left)
        console.print(
            Rule(f"[bold]{number}/{len(todo)} {stage.title}[/] · about {estimate:.0f} min left", align="left")
        )
        console.print(f"$ tandem {shlex.join(stage.argv)}", style="dim", highlight=False, soft_wrap=True)
        code = tandem(stage.argv)
        if code != 0:
            return code
        left -= stage.share
    console.print(f"done in {(time.monotonic() - start) / 60:.1f} min · open {root / 'report.html'}")
    console.print(f"curves and pictures: tensorboard --logdir {root}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
