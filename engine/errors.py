"""Errors that the engine raises for people. Each says what, got, expected, where and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, incomplete, or belongs to another model."""


class DivergenceError(RuntimeError):
    """Loss or gradient stayed non-finite for more steps in a row than the run allows."""


class DryBatchError(RuntimeError):
    """The forward and backward pass before step 1 failed: out of memory, or an error in objective or data."""
