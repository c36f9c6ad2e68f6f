"""`tandem finetune`: train a detector on labels; continues where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Sequence

# Light modules only, as in `launchers.pretrain`.
from engine.preempt import StopSignals
from launchers.cli import TRY_AGAIN
from launchers.options.finetune import parser
from launchers.pretrain import as_process
from launchers.training.mistakes import mistakes_told


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 when the run is finished, 75 when a stop signal came first."""
    with StopSignals():
        with mistakes_told():
            options = parser().parse_intermixed_args(argv)  # overrides may stand between options
            from configs.detection import FinetuneConfig
            from engine.distributed import shutdown
            from launchers.finetuning.run import train_run
            from launchers.training.train import load_any_run, resolved_yaml

            config = load_any_run(options.config, options.overrides, kind=FinetuneConfig)
            if options.show_config:
                print(resolved_yaml(config), end="")
                return 0
        finished = train_run(config).status == "finished"
        shutdown()
        return 0 if finished else TRY_AGAIN


if __name__ == "__main__":
    as_process(main, sys.argv[1:])
