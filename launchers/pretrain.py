"""`tandem pretrain`: train a method on shards; continues where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

# Light modules only: signal handlers have to be there before torch is imported, and each loader worker imports this
# module again (`launchers.training.train` would cost it some seconds and 150 MB).
from engine.preempt import StopSignals, ignore_stop_signals
from launchers.cli import TRY_AGAIN, guarded
from launchers.options.pretrain import parser
from launchers.runs import slurm
from launchers.training.mistakes import mistakes_told


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when the run is finished, 75 when a stop signal came first."""
    with StopSignals():
        with mistakes_told():
            options = parser().parse_intermixed_args(argv)  # overrides may stand between options
            from engine.distributed import shutdown
            from launchers.training.stages import stages
            from launchers.training.train import load_run, resolved_yaml, train

            config = load_run(options.config, options.overrides)
            if options.show_config:
                print(resolved_yaml(config), end="")
                return 0
            planned = stages(config)
        finished = all(train(stage).status == "finished" for stage in planned)
        shutdown()
        return 0 if finished else TRY_AGAIN


def as_process(verb_main: Callable[[list[str]], int], argv: list[str]) -> NoReturn:
    """A verb that trains as a whole process: signals are caught from its first line to its last."""
    StopSignals().catch()
    slurm.stop_with_slurmstepd()
    code = guarded(verb_main, argv)
    ignore_stop_signals()  # the code is known; a signal during the interpreter's clean-up must not replace it
    sys.exit(code)


if __name__ == "__main__":
    as_process(main, sys.argv[1:])
