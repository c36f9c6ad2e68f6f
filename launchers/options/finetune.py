"""`tandem finetune CONFIG [section.field=value ...] [init=...]`: train a detector on labels; goes on where it stopped.

A run like a pre-training run: alone, under torchrun or under srun, the same signals and exit codes (`tandem pretrain
--help`). What the detector starts from is `init`:
    random              fresh weights (the default)
    RUN                 folder of a run, or of one of its checkpoints: its 3D network, image network or both, as the
                        detector has them (`init_towers` chooses); all of a detector of the same settings
    FILE                what `tandem export` wrote
    slidr:FILE          a checkpoint of the SLidR family

Examples:
    tandem finetune second_street init=runs/slidr_street
    tandem finetune kitti_second data.shards=/data/kitti/shards init=random --show-config
    torchrun --nproc-per-node 8 -m launchers.finetune my_detector.yaml init=backbone.safetensors
"""

from __future__ import annotations

import argparse

from launchers.cli import verb_parser
from launchers.options.common import add_config, add_overrides, add_show_config


def parser() -> argparse.ArgumentParser:
    """Options of the verb."""
    p = verb_parser("tandem finetune", __doc__)
    add_config(p, "finetune", "YAML file of the run, or its name in configs/finetune, for example second_street")
    add_overrides(p)
    add_show_config(p)
    return p
