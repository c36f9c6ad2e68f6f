"""One tar of a prepared set, and the error of a set that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass


class ShardError(RuntimeError):
    """A prepared set is absent, incomplete, of another schema, or too damaged to continue."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar of the set; `num_samples` counts what was written into it, including what a repair has dropped since."""

    file: str
    num_samples: int
    num_bytes: int
    sha256: str
