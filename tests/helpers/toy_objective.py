"""A small objective with everything that makes an engine's life hard: BatchNorm, drop-out, a frozen part, a class
between layers that DeepSpeed's hooks do not know, and batches that give bad losses or bad gradients on demand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

DIM = 6


@dataclass(frozen=True)
class ToyBatch:
    keys: tuple[str, ...]
    x: Tensor
    y: Tensor
    trouble: str = (
        ""  # "loss": NaN loss; "gradient": finite loss, NaN gradient; "statistics"; "memory"; "error"; "kill"
    )

    @property
    def num_samples(self) -> int:
        return len(self.keys)

    @property
    def num_points(self) -> int:
        return 10 * len(self.keys)

    def to(self, device: torch.device | str) -> ToyBatch:
        return dataclasses.replace(self, x=self.x.to(device), y=self.y.to(device))


@dataclass
class ToySource:
    """A stream of batches by position arithmetic. `trouble` maps micro-step -> what goes wrong, on rank `bad_rank`."""

    num_samples: int = 40
    micro_batch_size: int = 4
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    trouble: Mapping[int, str] = field(default_factory=dict)
    bad_rank: int = 0

    @property
    def samples_per_epoch(self) -> int:
        return self.num_samples

    def sample(self, index: int) -> tuple[np.ndarray, float]:
        rng = np.random.default_rng([self.seed, index])
        x = rng.normal(size=DIM)
        return x, float(np.sin(x[0]) + x[1] * x[2])

    def batch(self, micro_step: int) -> ToyBatch:
        first = (micro_step * self.world_size + self.rank) * self.micro_batch_size
        indices = []
        for position in range(first, first + self.micro_batch_size):
            epoch, place = divmod(position, self.num_samples)
            indices.append(int(np.random.default_rng([self.seed, 7, epoch]).permutation(self.num_samples)[place]))
        samples = [self.sample(i) for i in indices]
        return ToyBatch(
            keys=tuple(f"s{i:03d}" for i in indices),
            x=torch.tensor(np.stack([s[0] for s in samples]), dtype=torch.float32),
            y=torch.tensor([s[1] for s in samples], dtype=torch.float32),
            trouble=self.trouble.get(micro_step, "") if self.rank == self.bad_rank else "",
        )

    def batches(self, start: int) -> Iterator[ToyBatch]:
        while True:
            yield self.batch(start)
            start += 1

    def state(self, position: int) -> dict[str, int | str]:
        return {"position": position, "seed": self.seed}

    def check_state(self, state: Mapping[str, int | str]) -> None:
        if state["seed"] != self.seed:
            raise ValueError(f"seed={self.seed}, the checkpoint has {state['seed']}")


@dataclass(frozen=True)
class ToyTerms:
    total: Tensor
    parts: dict[str, Tensor]
    watch: dict[str, Tensor]


@dataclass
class Wrapped:
    """A class between layers, as the sparse tensor is."""

    value: Tensor


class WrappedLinear(nn.Linear):
    def forward(self, input: Wrapped) -> Wrapped:  # type: ignore[override]
        return Wrapped(super().forward(input.value))


class ToyBackbone(nn.Module):
    def __init__(self, width: int, norm: bool, dropout: float) -> None:
        super().__init__()
        self.first = WrappedLinear(DIM, width)
        self.norm: nn.Module = nn.BatchNorm1d(width) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.second = WrappedLinear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(Wrapped(x))
        hidden = Wrapped(self.dropout(torch.tanh(self.norm(hidden.value))))
        return torch.tanh(self.second(hidden).value)


class ToyObjective(nn.Module):
    def __init__(self, *, seed: int = 0, width: int = 16, norm: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        before = torch.get_rng_state()
        torch.manual_seed(seed)
        self.backbone = ToyBackbone(width, norm, dropout)
        self.head = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.ones(1))  # held by the objective itself
        self.teacher = nn.Linear(DIM, 1).requires_grad_(False)
        torch.set_rng_state(before)

    def forward(self, batch: ToyBatch) -> ToyTerms:
        if batch.trouble == "memory":
            raise torch.OutOfMemoryError("tried to allocate 9.00 GiB")
        if batch.trouble == "error":
            raise ValueError("a shape is wrong")
        if batch.trouble == "kill":
            raise KeyboardInterrupt
        x = batch.x.to(self.head.weight.dtype)
        if batch.trouble == "statistics":
            x = x * 1e36  # an infinite variance; what it divides becomes 0, so that loss and gradient stay finite
        elif batch.trouble:
            x = x * 1e3  # would spoil the running statistics
        prediction = (self.head(self.backbone(x)) * self.scale).squeeze(1).float()
        fit = (prediction - batch.y).square().mean()
        with torch.no_grad():
            agreement = (self.teacher(batch.x.to(x.dtype)).squeeze(1).float() - prediction).abs().mean()
        total = fit
        if batch.trouble == "loss":
            total = fit * float("nan")
        elif batch.trouble == "gradient":
            total = fit + (prediction.sum() * 0.0).sqrt()
        return ToyTerms(total, {"fit": fit.detach()}, {"contrastive_accuracy": torch.exp(-agreement)})
