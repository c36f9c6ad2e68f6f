"""Whether a gain may be chance: how many frames it was measured on, how many runs it comes from, and their spread.

The rule, the same for all protocols. A gain is marked as doubtful where

- the test split has fewer than `LEAST_TEST_SAMPLES` frames: neighbouring frames of a drive show the same cars and
  walls, so that a handful of them is little more than one scene;
- fewer than `LEAST_PAIRS` independent runs were paired with random initialisation: no spread can be told from one or
  two (of several pre-training runs, each on several draws, as many are independent as there are runs, or draws);
- the 95 % interval of the mean difference (Student's t over the independent ones) contains 0;
- all labels were used, and those were of fewer than `LEAST_LABELLED_SAMPLES` frames.

It says nothing of what one more pre-training run would give, unless several runs are in the row.
"""

from __future__ import annotations

import math

from engine.downstream.results import Difference, Result

LEAST_TEST_SAMPLES = 20
LEAST_LABELLED_SAMPLES = 20
LEAST_PAIRS = 3
_CONFIDENCE = 0.95


def test_samples(result: Result) -> tuple[int, str] | None:
    """Samples of the test split and what they are, "sweeps" or "samples"; None in records that do not say."""
    return _count(result, "test_")


def doubts(result: Result, gain: Difference) -> tuple[str, ...]:
    """Why this gain may be chance, in a few words each; () where nothing speaks for that."""
    found = []
    tested, labelled = _count(result, "test_"), _count(result, "train_")
    if tested is not None and tested[0] < LEAST_TEST_SAMPLES:
        found.append(f"only {_counted(*tested)} in the test split")
    if result.labels == "all" and labelled is not None and labelled[0] < LEAST_LABELLED_SAMPLES:
        found.append(f"only {_counted(*labelled)} with labels")
    if gain.independent < LEAST_PAIRS:
        found.append(f"only {gain.independent} paired run{'s' if gain.independent > 1 else ''}")
    elif abs(gain.mean) <= (half := half_interval(gain)):
        found.append(f"the 95 % interval over {gain.num_pairs} paired runs, ± {result.measure.text(half)}, contains 0")
    return tuple(found)


def half_interval(gain: Difference) -> float:
    """Half the width of the 95 % interval of the mean difference; infinite for one independent pair."""
    from scipy.special import stdtrit  # not scipy.stats, which takes half a second to load

    if gain.std is None or gain.independent < 2:
        return math.inf
    quantile = float(stdtrit(gain.independent - 1, (1 + _CONFIDENCE) / 2))
    return quantile * gain.std / math.sqrt(gain.independent)


def _count(result: Result, prefix: str) -> tuple[int, str] | None:
    """A protocol counts what its tower sees: settings have test_sweeps or test_samples."""
    for unit in ("sweeps", "samples"):
        if isinstance(count := result.settings.get(prefix + unit), int):
            return count, unit
    return None


def _counted(count: int, unit: str) -> str:
    return f"{count} {unit if count != 1 else unit[:-1]}"
