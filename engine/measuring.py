"""What is measured while a run trains, at its own pace and with all ranks: of a detector, say, its average precision.

A checkpoint of the step is there before it begins. So a kill in its middle costs no update, and a stop signal ends it
early; either way the run measures that step first when it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from engine.distributed import agree_signal
from engine.monitor import Monitor
from engine.preempt import StopSignals
from engine.watchdog import Watchdog
from engine.zero import ZeroEngine, untouched


@runtime_checkable
class Measurement(Protocol):
    """Something that is measured of the objective; it keeps its own record of what it has measured."""

    def begin(self, step: int) -> None:
        """Forget what was measured beyond `step`, from where the run begins or goes on."""

    def due(self, step: int, *, last: bool) -> bool:
        """Whether it is to be measured after `step` updates, and was not yet; the same on all ranks."""

    def __call__(self, objective: nn.Module, step: int, stopped: Callable[[], bool]) -> Mapping[str, float] | None:
        """Measure; all ranks call it, in evaluation mode without gradient.

        At ZeRO-3 a forward pass gathers weights from all ranks: each must make equally many.

        Args:
            objective: of the run; it is left as it was by whoever calls.
            step: updates done.
            stopped: whether the run is to stop. All ranks ask equally often, between batches, and get the same answer.

        Returns:
            Names of TensorBoard's scalars and their values, on rank 0; None where it was stopped before its end.
        """


class Measuring:
    """Takes the measurements of a run; without a measurement nothing is ever due."""

    def __init__(
        self,
        measurement: Measurement | None,
        engine: ZeroEngine,
        monitor: Monitor,
        watch: Watchdog,
        signals: StopSignals,
        *,
        num_steps: int,
    ) -> None:
        self._measurement, self._engine, self._monitor = measurement, engine, monitor
        self._watch, self._signals, self._num_steps = watch, signals, num_steps

    def due(self, step: int) -> bool:
        """Whether a measurement is to be taken after `step` updates, or is owed since an earlier attempt."""
        return owed(self._measurement, step, num_steps=self._num_steps)

    @torch.no_grad()
    def take(self, step: int) -> str | None:
        """Measure where it is due, leaving no trace in the run; name of the signal that ended it early, else None."""
        if self._measurement is None or not self.due(step):
            return None
        received: list[str] = []

        def stopped() -> bool:
            self._watch.phase("measure", step)
            if (name := agree_signal(self._signals, self._engine.world)) is not None:
                received.append(name)
            return bool(received)

        self._watch.phase("measure", step)
        with untouched(self._engine.objective):
            self._engine.objective.eval()
            values = self._measurement(self._engine.objective, step, stopped)
        if values is not None:
            self._monitor.measured(step, values)
        return received[0] if received else None


def owed(measurement: Measurement | None, step: int, *, num_steps: int) -> bool:
    """Whether a run that has come to `step` has yet to be measured there."""
    return measurement is not None and step > 0 and measurement.due(step, last=step >= num_steps)
