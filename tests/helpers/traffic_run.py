"""`python -m tests.helpers.traffic_run`: bytes that one update of the toy objective sends, by stage and micro-batches.

Prints a JSON list of [stage, accumulation steps, trainable parameters, bytes by kind, calls by kind]; see
`tests.helpers.collectives`.
"""

from __future__ import annotations

import json

import torch

from tests.helpers.collectives import record

COUNTED = record()  # before DeepSpeed is imported

from engine.deepspeed_config import EngineConfig, quiet_deepspeed  # noqa: E402
from engine.distributed import init_distributed, shutdown  # noqa: E402
from engine.optim import OptimConfig, build_optimizer  # noqa: E402
from engine.zero import ZeroEngine  # noqa: E402
from tests.helpers.toy_objective import ToyObjective, ToySource  # noqa: E402

WIDTH = 512
"""Parameters enough that padding and ZeRO's own messages do not count."""
UPDATES = 3
"""The last one is counted: ZeRO-3 learns the order of layers in the first two."""


def main() -> None:
    torch.set_num_threads(1)
    world = init_distributed("cpu")
    found = []
    for stage in (0, 1, 2, 3):
        for accumulation_steps in (1, 2):
            objective = ToyObjective(width=WIDTH, norm=False).train()
            config = EngineConfig(
                zero_stage=stage, zero3_persistent_numel=0, accumulation_steps=accumulation_steps, device="cpu"
            )
            batches = ToySource(rank=world.rank, world_size=world.world_size).batches(0)
            with quiet_deepspeed():
                optimizer = build_optimizer(objective, OptimConfig(), 0.1)
                engine = ZeroEngine(objective, optimizer, config, world, micro_batch_size=4)
                for update in range(UPDATES):
                    COUNTED.clear()
                    COUNTED.on = update == UPDATES - 1
                    for micro in range(accumulation_steps):
                        total, _, _ = engine.forward(next(batches))
                        engine.backward(total, last=micro == accumulation_steps - 1)
                    engine.update(0.1)
                COUNTED.on = False
                engine.close()
            trainable = sum(p.numel() for p in ToyObjective(width=WIDTH, norm=False).parameters() if p.requires_grad)
            found.append([stage, accumulation_steps, trainable, COUNTED.received, COUNTED.calls])
    shutdown()
    if world.is_main:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
