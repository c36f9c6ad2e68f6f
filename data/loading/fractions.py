"""Which samples keep their labels: whole logs, every k-th sample, random draws, or lists of keys.

Results at small fractions depend on the draw (single-frame draws differ by many points of mIoU), so a draw is a
function of its settings, the same for every method that is compared, and its list lies beside the results.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Int

from common.files import replace_file
from common.ranges import at_least, expect
from common.small_files import DamagedFileError, read_text
from data.storage.manifest import Manifest
from data.storage.shard import ShardError


@dataclass(frozen=True, kw_only=True)
class FractionConfig:
    """A choice of labelled samples.

    Attributes:
        kind: "all"; "every_log": whole logs number k, 2k, ... (SLidR's nuScenes lists); "every_sample": samples 0, k,
            2k, ... (SLidR's KITTI list); "random": `count` samples without repetition; "list": those of `file`
            (SegContrast's lists for SemanticKITTI lie in configs/fractions).
        every: k.
        count: samples to draw.
        seed: of the draw.
        file: a list as `write_list` makes: one key a line.
    """

    kind: Literal["all", "every_log", "every_sample", "random", "list"] = "all"
    every: int = 100
    count: int = 1
    seed: int = 0
    file: str = ""

    def __post_init__(self) -> None:
        at_least(self, every=1, count=1, seed=0)
        expect(self, "file", self.kind != "list" or bool(self.file), "the name of a file (kind is list)")


def select(manifest: Manifest, indices: Int[np.ndarray, " n"], config: FractionConfig) -> Int[np.ndarray, " k"]:
    """The samples of `indices` that a fraction keeps, in the order of `indices`: `Manifest.indices`, by log and time.

    Raises:
        ValueError: the fraction keeps nothing, or asks for more than there is.
        ShardError: a list that cannot be read or belongs to another set.
    """
    if config.kind == "every_log":
        return every_kth_log(manifest, indices, config.every)
    if config.kind == "every_sample":
        # Source: Sautier et al., SLidR (CVPR 2022), code for SemanticKITTI (k = 100: 192 of 19,130 scans).
        return np.asarray(indices[:: config.every])
    if config.kind == "random":
        return random_draw(indices, config.count, config.seed)
    if config.kind == "list":
        return listed(manifest, indices, config.file)
    return indices


def every_kth_log(manifest: Manifest, indices: Int[np.ndarray, " n"], k: int) -> Int[np.ndarray, " k"]:
    """Whole logs: the k-th, 2k-th, ... of those that `indices` holds, in its order.

    Source: Sautier et al., SLidR (CVPR 2022), released code for nuScenes (1 % is k = 100: 7 of 700 scenes).

    Raises:
        ValueError: fewer than k logs.
    """
    logs = manifest.sample_log[indices]
    # Logs in the order of their first sample: `np.unique` alone would sort them by number.
    in_order = logs[np.sort(np.unique(logs, return_index=True)[1])]
    labelled_logs = in_order[k - 1 :: k]
    if len(labelled_logs) == 0:
        raise ValueError(f"every {k}th log of {len(in_order)} logs keeps none; choose k of at most {len(in_order)}")
    return np.asarray(indices[np.isin(logs, labelled_logs)])


def random_draw(indices: Int[np.ndarray, " n"], count: int, seed: int) -> Int[np.ndarray, " k"]:
    """`count` samples drawn uniformly without repetition; draws of one seed contain each other as `count` grows.

    Raises:
        ValueError: more samples than there are.
    """
    if count > len(indices):
        raise ValueError(f"count is {count}, but there are only {len(indices)} samples to draw from")
    # The first of one permutation, so that a larger draw holds the smaller ones.
    drawn = np.random.Generator(np.random.Philox(seed)).permutation(len(indices))[:count]
    return np.asarray(indices[np.sort(drawn)])


def listed(manifest: Manifest, indices: Int[np.ndarray, " n"], path: str) -> Int[np.ndarray, " k"]:
    """Those of `indices` that a list file names.

    Source: Nunes et al., SegContrast (RA-L 2022), released lists for SemanticKITTI, drawn within each sequence until
    all classes of the sequence were among them.

    Raises:
        ShardError: the list cannot be read, or names samples that are not in the set.
        ValueError: it names none of `indices`.
    """
    named = np.isin(indices, read_list(path, manifest))
    if not named.any():
        raise ValueError(f"{path} names none of the {len(indices)} samples to choose from")
    return np.asarray(indices[named])


def write_list(path: str | os.PathLike[str], manifest: Manifest, indices: Int[np.ndarray, " n"], note: str) -> None:
    """Write a list file: comment lines with `#`, then one key a line; `note` says how the samples were chosen.

    The file's folder is made.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"# {manifest.set_name}: {len(indices)} samples. {' '.join(note.split())}"]
    lines += [manifest.key(int(index)) for index in indices]
    replace_file(file, ("\n".join(lines) + "\n").encode())


def read_list(path: str | os.PathLike[str], manifest: Manifest) -> Int[np.ndarray, " n"]:
    """Indices of the samples that a list file names, in its order.

    Raises:
        ShardError: the file cannot be read, a key is not in the set or occurs twice, or the list is empty.
    """
    try:
        text = read_text(Path(path))
    except DamagedFileError as error:
        raise ShardError(f"cannot read the list {error}; expected one key a line") from error
    if text is None:
        raise ShardError(f"cannot read the list {path}: no such file; expected one key a line")
    lines = [line.strip() for line in text.splitlines()]
    keys = np.array([line.encode() for line in lines if line and not line.startswith("#")], dtype="S")
    if len(keys) == 0:
        raise ShardError(f"{path} names no samples, expected one key a line")
    unique, counts = np.unique(keys, return_counts=True)
    if (counts > 1).any():
        raise ShardError(f"{path} names {bytes(unique[counts > 1][0]).decode()!r} more than once")
    order = np.argsort(manifest.keys)
    at = np.minimum(np.searchsorted(manifest.keys, keys, sorter=order), len(manifest) - 1)
    samples = order[at]  # where a key would be, whether it is there or not
    absent = manifest.keys[samples] != keys
    if absent.any():
        raise ShardError(
            f"{path} names {bytes(keys[absent][0]).decode()!r} and {int(absent.sum()) - 1} more that are not in "
            f"{manifest.root} ({manifest.set_name}); the list belongs to another set"
        )
    return np.asarray(samples, dtype=np.int64)
