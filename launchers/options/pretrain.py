"""`tandem pretrain CONFIG [section.field=value ...]`: train a method on shards; continues where it stopped.

Alone, under torchrun or under srun: the same command. A folder that has checkpoints is continued; a signal
(SIGTERM, SIGUSR1, SIGUSR2, SIGINT) finishes the step, writes a checkpoint and leaves with code 75 ("try again").
Code 70: another process of the run died or stopped answering; the same command continues from the last checkpoint.
If the config has a section `first`, that run is trained first, or skipped if it is finished.

Examples:
    tandem pretrain slidr_street data.shards=runs/street schedule.steps=200
    tandem pretrain slidr_nuscenes data.shards=/data/nuscenes/shards optim.lr=0.1 --show-config
    torchrun --nproc-per-node 8 -m launchers.pretrain my_run.yaml
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import add_config, add_overrides, add_show_config


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem pretrain", __doc__)
    add_config(p, "pretrain", "YAML file of the run, or its name in configs/pretrain, for example slidr_street")
    add_overrides(p)
    add_show_config(p)
    return p
