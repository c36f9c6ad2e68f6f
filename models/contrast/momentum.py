"""Momentum encoders: a copy of a network that follows it slowly and makes keys that hardly change from step to step.

    key weights <- m * key weights + (1 - m) * weights,   after each update that was applied

The copy's weights are parameters without gradient: no optimiser holds them, checkpoints do, so a run resumes bit for
bit. Every rank has the same weights after an update and computes the same copy, so nothing is sent.

BatchNorm: as in MoCo the copy runs in training mode and normalises a batch with that batch's own statistics; its
running statistics are its own and only evaluation mode reads them. A query and its key are then normalised with
statistics of the same samples, the keys of the queue with those of others: a signature that gives the positive away.
MoCo hides it by shuffling samples between GPUs before the key encoder, each of which has statistics of its own.
Here statistics are those of all ranks (`engine.sync_bn`), where shuffling changes nothing: with many samples per update
the signature is weak, and with few there is `norms: running`, which removes it: the copy normalises with running
statistics that follow the network's as its weights do (EMAN).

Age: the positive is the newest key, the queue holds older ones. With a copy that moves much within the queue's length a
network can tell them by age alone, by drifting, and collapses when the rate falls (figures: docs/methods/moco.md).

Not at ZeRO 3, where a rank holds a share of each weight, and not with weights in bfloat16, which has 8 bits: a step of
1/1000 of a difference rounds to nothing and the copy stands still.

Source: He et al., "Momentum contrast for unsupervised visual representation learning", CVPR 2020, section 3.2, eq. 2;
the ramp: Grill et al., "Bootstrap your own latent", NeurIPS 2020, section 3.2; `norms: running`: Cai et al.,
"Exponential moving average normalization for self-supervised and semi-supervised learning", CVPR 2021, section 3.2.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.ranges import share


@dataclass(frozen=True, kw_only=True)
class MomentumConfig:
    """How a key encoder follows.

    Attributes:
        start: m at the beginning, and throughout where it is constant.
        ramp: "constant"; "cosine": m rises to 1 at the end of the run along half a cosine.
        norms: what BatchNorm in the copy normalises with: "batch", the statistics of the batch at hand; "running", the
            network's running statistics, which it follows.
    """

    start: float = 0.999
    ramp: Literal["constant", "cosine"] = "constant"
    norms: Literal["batch", "running"] = "batch"

    def __post_init__(self) -> None:
        share(self, "start")

    def at(self, progress: float) -> float:
        """The momentum after an update; `progress` is the share of the run's updates that are done, 0 to 1."""
        if self.ramp == "constant":
            return self.start
        return 1.0 - (1.0 - self.start) * (1.0 + math.cos(math.pi * progress)) / 2.0


class MomentumCopy(nn.Module):
    """A network's copy that follows it; the network itself is held by its owner."""

    def __init__(self, network: nn.Module, config: MomentumConfig) -> None:
        """Begin with the network's weights and statistics."""
        super().__init__()
        self.config = config
        self.copy = copy.deepcopy(network).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> MomentumCopy:
        """Training mode, unless the copy uses running statistics."""
        super().train(mode and self.config.norms == "batch")
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The copy's output, without gradient."""
        out: Tensor = self.copy(*args, **kwargs)
        return out

    @torch.no_grad()
    def follow(self, network: nn.Module, progress: float) -> None:
        """Move towards the network that was copied; `progress` as of `MomentumConfig.at`."""
        mine: list[Tensor] = list(self.copy.parameters())
        theirs: list[Tensor] = list(network.parameters())
        if self.config.norms == "running":
            pairs = list(zip(self.copy.buffers(), network.buffers(), strict=True))
            mine += [a for a, _ in pairs if a.is_floating_point()]
            theirs += [b for _, b in pairs if b.is_floating_point()]
        torch._foreach_lerp_(mine, theirs, 1.0 - self.config.at(progress))


def check_whole_weights(method: str, *, zero_stage: int, precision: str) -> None:
    """Refuse settings of the engine that a momentum encoder cannot work under.

    Raises:
        ValueError: names the setting, why it does not work and what does.
    """
    if zero_stage == 3:
        raise ValueError(
            f"engine.zero_stage=3 does not work with {method}: its momentum encoder follows whole weights, of which "
            "each rank holds a share only; set engine.zero_stage to 0, 1 or 2"
        )
    if precision == "bf16_native":
        raise ValueError(
            f"engine.precision=bf16_native does not work with {method}: a momentum encoder in bfloat16 stands still, "
            "because steps of 1/1000 round to nothing; set engine.precision=bf16, which keeps the weights in fp32"
        )
