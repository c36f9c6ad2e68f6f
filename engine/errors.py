"""Expected errors of the engine. Each says what, got, expected, where and what to do. No torch import."""


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, incomplete, or belongs to another model."""


class DivergenceError(RuntimeError):
    """Loss or gradient stayed non-finite for more steps in a row than the run allows."""


class DryBatchError(RuntimeError):
    """The forward and backward pass before step 1 failed: out of memory, or an error in objective or data."""


class RunLockedError(RuntimeError):
    """Another job trains in the same run folder."""


class PeerLostError(RuntimeError):
    """A rank died, stopped answering or stands still: the same command again continues from the last checkpoint."""


class PeerFailedError(RuntimeError):
    """Another rank ended with an error of its own, which is named; this one could not go on alone."""


class StopRequested(RuntimeError):  # noqa: N818  # not an error: what was asked for
    """The run was told to stop before its first update, so there is nothing to save. Raised on all ranks alike.

    Attributes:
        signal: name of the signal.
    """

    def __init__(self, signal: str) -> None:
        super().__init__(signal)
        self.signal = signal

    def __str__(self) -> str:
        """One line."""
        return f"stopped by {self.signal} before the first update; the same command again starts or continues the run"
