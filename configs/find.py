"""Config files by path or by name, and which kind of config a file is. Light: help and completion use it, too.

A path wins. `slidr_street` is otherwise the file of that name that comes with Tandem in the folder of its kind, and
`configs/pretrain/slidr_street.yaml` is found from any working directory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.nearby import nearest

PACKAGED = Path(__file__).resolve().parent
SUFFIXES = (".yaml", ".yml")
_MOST_NAMES = 5
"""Of the files in a folder, in a message."""


@dataclass(frozen=True, kw_only=True)
class ConfigKind:
    """One kind of config file.

    Attributes:
        folder: where those that come with Tandem lie, in `configs/`.
        title: in messages.
        use: the command that takes such a file.
        marks: top-level names that only this kind has.
    """

    folder: str
    title: str
    use: str
    marks: frozenset[str]


KINDS: Mapping[str, ConfigKind] = {
    "PretrainConfig": ConfigKind(
        folder="pretrain",
        title="a pre-training run",
        use="tandem pretrain, submit or plan",
        marks=frozenset({"run_dir", "method", "optim", "schedule", "engine", "checkpoint", "monitor", "first", "seed"}),
    ),
    "FinetuneConfig": ConfigKind(
        folder="finetune",
        title="a detector's training",
        use="tandem finetune, submit or plan",
        marks=frozenset(
            {"run_dir", "model", "init", "judge", "optim", "schedule", "engine", "checkpoint", "monitor", "seed"}
        ),
    ),
    "EvaluateConfig": ConfigKind(
        folder="downstream",
        title="downstream protocols",
        use="tandem evaluate RUN",
        marks=frozenset(
            {"protocols", "linear_probe", "knn", "finetune", "depth", "image_linear_probe", "image_finetune"}
            | {"registration", "fraction", "augment", "images", "random", "results"}
            | {"validation_share", "voxels_per_sweep"}
        ),
    ),
    "PrepareRunConfig": ConfigKind(
        folder="prepare",
        title="a set to prepare",
        use="tandem prepare",
        marks=frozenset({"set", "superpixels", "codec", "samples_per_shard", "max_skip_share", "limit"}),
    ),
    "SlurmConfig": ConfigKind(
        folder="cluster",
        title="a cluster",
        use="tandem submit or sweep, behind --cluster",
        marks=frozenset(
            {"partition", "nodes", "gpus_per_node", "tasks_per_node", "cpus_per_task", "mem_gb", "time_min", "account"}
            | {"qos", "signal_s", "array_parallelism", "setup", "sbatch"}
        ),
    ),
    "SweepConfig": ConfigKind(
        folder="sweep",
        title="a sweep",
        use="tandem sweep",
        marks=frozenset({"base", "root", "points", "runs", "grid"}),
    ),
    "ReproduceConfig": ConfigKind(
        folder="reproduce",
        title="a paper's tables",
        use="tandem reproduce",
        marks=frozenset({"paper", "steps", "tables", "about", "methods"}),
    ),
}
"""Name of the dataclass -> its kind of file."""


def config_names(folder: str | None) -> list[str]:
    """Names of the configs of one kind that come with Tandem."""
    return [] if folder is None else sorted(path.stem for path in (PACKAGED / folder).glob("*.yaml"))


def find_config(text: str | Path, folder: str | None) -> Path:
    """The file that a path or a name means.

    Args:
        text: what the user gave.
        folder: of the kind in `configs/`, for example "pretrain"; names are those of its files. None: none are known.

    Raises:
        FileNotFoundError: neither; the message has the nearest names.
        IsADirectoryError: a folder.
    """
    given = Path(text)
    if given.is_file():
        return given
    if given.is_dir() and str(text) not in config_names(folder):
        raise IsADirectoryError(f"{text}: is a folder, expected a YAML file{_instead_of(given, folder)}")
    if "=" in given.name:
        raise FileNotFoundError(f"{text}: no such config file; the config comes first, settings behind it")
    bare = given.suffix not in SUFFIXES
    if given.parent == Path(".") and folder is not None:
        packaged = PACKAGED / folder / (f"{given.name}.yaml" if bare else given.name)
    else:  # `configs/pretrain/x.yaml`, from a folder that has no `configs`
        packaged = PACKAGED.parent / given if given.parts[0] == PACKAGED.name else given
    if packaged.is_file():
        return packaged
    beside = sorted(str(path) for path in given.parent.glob("*.yaml"))
    longer = [name for name in config_names(folder) if name.startswith(f"{given.stem}_")]
    if longer:  # nearer than one of this very name of another kind
        raise FileNotFoundError(f"{text}: no such config file; did you mean {' or '.join(longer)}?")
    is_name = bare and given.parent == Path(".")
    hint = nearest(str(text), [*beside, *(config_names(folder) if is_name else ())], cutoff=0.4)
    hint = hint or nearest(given.stem, config_names(folder), cutoff=0.4 if is_name else 0.7)
    known = "" if folder is None else f"; expected a path, or one of {', '.join(config_names(folder))}"
    hint = hint or (known if given.parent == Path(".") else _around(given))
    raise FileNotFoundError(f"{text}: no such config file{elsewhere(given.stem, folder) or hint}")


def _around(given: Path) -> str:
    """What there is where a file with its folder was expected."""
    if given.parent.is_dir():
        beside = sorted(path.name for path in given.parent.glob("*.yaml"))
        more = ", ..." if len(beside) > _MOST_NAMES else ""
        return f"; {given.parent} has {', '.join(beside[:_MOST_NAMES]) or 'no YAML file'}{more}"
    absent = next(folder for folder in reversed([given.parent, *given.parent.parents]) if not folder.is_dir())
    folders = [str(folder) for folder in absent.parent.iterdir() if folder.is_dir()]
    return f"; there is no folder {absent}{nearest(str(absent), folders)}"


def elsewhere(name: str, folder: str | None) -> str:
    """Which kinds of config have one of this name: "; slidr_street is the config of ...", or ""."""
    others = [kind for kind in KINDS.values() if kind.folder != folder and name in config_names(kind.folder)]
    return f"; {name} is the config of {others[0].title}, which goes to {others[0].use}" if others else ""


def _instead_of(given: Path, folder: str | None) -> str:
    """What may be meant by a folder that was given for a config file."""
    inside = sorted(given.glob("*.yaml"))
    if given / "config.yaml" in inside and folder != "pretrain":
        return f" or one of {', '.join(config_names(folder))}; that is the folder of a run"
    if given / "config.yaml" in inside:
        return f"; did you mean {given / 'config.yaml'}, the config of that run?"
    return f"; did you mean one of {', '.join(map(str, inside[:3]))}?" if inside else ""


def kind_of(names: Iterable[str]) -> str | None:
    """The dataclass that the top-level names of a file belong to: most marks; None for none or a draw.

    What all kinds of runs have in common counts as pre-training's.
    """
    given = set(names)
    counts = {kind: len(given & entry.marks) for kind, entry in KINDS.items()}
    most = max(counts.values())
    best = [kind for kind, count in counts.items() if count == most]
    return best[0] if most and (len(best) == 1 or best == ["PretrainConfig", "FinetuneConfig"]) else None
