"""What the papers say and what happens here, side by side.

    python -m benchmarks.fidelity recipes                      # all runs of configs/pretrain that stand for a paper's
    python -m benchmarks.fidelity recipes slidr_nuscenes       # one of them
    python -m benchmarks.fidelity metrics                      # mIoU where a class is not there
    python -m benchmarks.fidelity intensity                    # a network and the scale of intensity it learnt from

Superpixels against scikit-image's: `python -m benchmarks.superpixels --scikit-image`.

`recipes`: each setting that a paper (or its released code) gives, the config's value, and why they differ where they
do. The papers' values are in `benchmarks/papers.yaml`, the reasons in the section "Deviations" of the method's page.
`metrics`: mIoU of 16 classes by `absent_class`. `intensity`: centred cosine between the features that a network gives
on the intensities it learnt from, 0 to 255, and on ours, 0 to 1, before and after its first layer is converted.
"""

from __future__ import annotations

import argparse
import functools
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
import yaml

from benchmarks.common import REPOSITORY
from configs.load import required_settings
from configs.schema import PretrainConfig
from engine.downstream.confusion import AbsentClass, ConfusionMatrix
from engine.optim import peak_lr
from launchers.exporting.proof import random_voxels
from launchers.training.train import load_run
from models.lidar.inputs import SLIDR_INPUT, PointInput
from models.lidar.minkowski import from_minkowski, to_minkowski
from models.lidar.res16unet import Res16UNetConfig
from models.methods import METHODS

PAPERS = REPOSITORY / "benchmarks" / "papers.yaml"
CONFIGS = REPOSITORY / "configs" / "pretrain"
_ROUNDING = 1e-3
"""Relative difference of numbers that are the same but for the digits that are printed."""


@dataclass(frozen=True)
class Value:
    """One setting of a paper's run.

    Attributes:
        name: dotted; or "gpus", "batch", "rate" of the command in the config's header.
        paper: what the paper or its released code says; text where our setting cannot say it.
        here: the config's.
    """

    name: str
    paper: object
    here: object

    @property
    def deviates(self) -> bool:
        """Whether the two differ by more than rounding."""
        return not _same(self.paper, self.here)


@dataclass(frozen=True)
class Recipe:
    """A config and what its paper says of that run.

    Attributes:
        config: its name in configs/pretrain.
        method: name of the method.
        header: the comment that the file begins with.
        source: where the values are from.
        table: of the paper, where `figures` stand; "" where that is not known.
        figures: what the run was published with.
        values: setting by setting.
    """

    config: str
    method: str
    header: str
    source: str
    table: str
    figures: Mapping[str, float]
    values: tuple[Value, ...]


@functools.cache
def papers() -> dict[str, Any]:
    """Config -> what its paper says, as it stands in `PAPERS`."""
    return dict(yaml.safe_load(PAPERS.read_text(encoding="utf-8")))


@functools.cache
def recipe_of(config: str) -> Recipe:
    """What a config's paper says.

    Raises:
        AttributeError, KeyError: a name in `PAPERS` is no setting of the config.
    """
    return _recipe(config, papers()[config])


def paper_config(name: str) -> PretrainConfig:
    """A config of configs/pretrain by name; what it asks for is filled in as by `missing_values`."""
    path = CONFIGS / f"{name}.yaml"
    return load_run(str(path), missing_values(path))


def missing_values(path: Path) -> tuple[str, ...]:
    """Overrides for all that a file asks for with `???`: any shards, random weights."""
    return tuple(f"{name}={'a' if name == 'data.shards' else 'random'}" for name in required_settings(path))


def reasons(method: str) -> dict[str, str]:
    """Setting -> why it differs from the paper's, from the table in the section "Deviations" of the method's page."""
    page = (REPOSITORY / "docs" / "methods" / f"{method}.md").read_text(encoding="utf-8")
    _, _, section = page.partition("\n## Deviations\n")
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", section.partition("\n## ")[0], re.M)
    return {name: why for names, why in rows for name in re.findall(r"`([\w.]+)`", names)}


def _recipe(name: str, paper: Mapping[str, Any]) -> Recipe:
    config, text = paper_config(name), (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    header = "\n".join(line for line in text[: text.index("\ndata:")].splitlines() if line.startswith("#"))
    gpus = math.prod(int(n) for n in re.findall(r"--(?:nnodes|nproc-per-node) (\d+)", header))
    batch = gpus * config.data.micro_batch_size * config.engine.accumulation_steps
    update = {"gpus": gpus, "batch": batch, "rate": peak_lr(config.optim, batch)}
    values = (
        Value(setting, value, update[setting] if setting in update else _setting(config, setting))
        for setting, value in paper["values"].items()
    )
    return Recipe(
        config=name,
        method=next(method for method, kind in METHODS.items() if type(config.method) is kind),
        header=header,
        source=paper["source"],
        table=paper.get("table", ""),
        figures=paper.get("figures", {}),
        values=tuple(values),
    )


def _setting(config: PretrainConfig, dotted: str) -> object:
    """Its value; None in a section that is null."""
    found: Any = config
    for part in dotted.split("."):
        if found is not None:
            found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    return found


def _same(paper: object, here: object) -> bool:
    if isinstance(paper, list | tuple) and isinstance(here, list | tuple):
        return len(paper) == len(here) and all(map(_same, paper, here))
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in (paper, here)):
        return math.isclose(paper, here, rel_tol=_ROUNDING)  # type: ignore[arg-type]
    return type(paper) is type(here) and paper == here


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else "none" if value is None else str(value)


def recipe_tables(names: Sequence[str]) -> str:
    """The tables of papers' runs, as markdown; all of them without names.

    Raises:
        KeyError: a name is that of no paper's run.
    """
    parts = []
    for recipe in map(recipe_of, names or papers()):
        why = reasons(recipe.method)
        figures = ", ".join(f"{name} {value:g}" for name, value in recipe.figures.items())
        parts += [f"## {recipe.config}\n", recipe.source]
        parts += [f"Published: {figures}{f' ({recipe.table})' if recipe.table else ''}"] if figures else []
        parts += ["\n| setting | paper | here | deviation |", "|---|---|---|---|"]
        for value in recipe.values:
            reason = why.get(value.name, "NOT JUSTIFIED") if value.deviates else ""
            parts.append(f"| `{value.name}` | {_text(value.paper)} | {_text(value.here)} | {reason} |")
        parts.append("")
    return "\n".join(parts)


def metric_edges() -> str:
    """The mIoU of 16 classes, of which one is not there, as markdown."""
    lines = ["| mIoU, percent | " + " | ".join(get_args(AbsentClass)) + " |", "|---" * 4 + "|"]
    for case, correct, confused, as_last in (
        ("a class neither true nor predicted", 90302, 54849, 0),  # IoU of each other class: 45.151
        ("a class predicted, never true", 91404, 54000, 596),  # 45.702
    ):
        counts = torch.zeros(16, 16, dtype=torch.int64)
        for c in range(15):
            counts[c, c], counts[c, (c + 1) % 15], counts[c, 15] = correct, confused, as_last
        values = []
        for absent in get_args(AbsentClass):
            matrix = ConfusionMatrix(16, 255, absent=absent)
            matrix.counts = counts
            values.append(f"{100 * matrix.miou():.3f}")
        lines.append(f"| {case} | {' | '.join(values)} |")
    return "\n".join(lines)


def intensity_scales(preset: str = "res16unet34c") -> str:
    """How far features are from those on the intensities that BatchNorm's statistics belong to, as markdown.

    Random weights and random voxels: what is compared is one network with itself.
    """
    torch.manual_seed(0)
    cells, intensity, samples = random_voxels(1)
    config = Res16UNetConfig(preset=preset, backend="torch")  # type: ignore[arg-type]
    theirs, ours = config.build(), config.build().eval()
    scale = SLIDR_INPUT.intensity_scale
    with torch.no_grad():
        for _ in range(20):
            theirs(cells, scale * torch.rand_like(intensity), samples)
        expected = theirs.eval()(cells, scale * intensity, samples)
        lines = ["| first layer | centred cosine of features, mean over voxels |", "|---|---|"]
        for title, fed in (("as it is in the file", PointInput()), ("converted", SLIDR_INPUT)):
            ours.load_state_dict(from_minkowski(to_minkowski(theirs.state_dict()), ours.state_dict(), fed=fed)[0])
            features = ours(cells, intensity, samples)
            cosine = F.cosine_similarity(features - features.mean(0), expected - expected.mean(0)).mean()
            lines.append(f"| {title} | {float(cosine):.4f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("recipes", help="settings of the papers' runs: paper, here, and why they differ")
    command.add_argument("configs", nargs="*", help="names in configs/pretrain; all by default")
    commands.add_parser("metrics", help="mIoU where a class is not there")
    commands.add_parser("intensity", help="features of a network on another scale of intensity")
    given = parser.parse_args(argv)
    if given.command != "recipes":
        print(metric_edges() if given.command == "metrics" else intensity_scales())
        return 0
    unknown = sorted(set(given.configs) - set(papers()))
    if unknown:
        parser.error(f"{unknown[0]}: no paper's run; expected one of {', '.join(papers())}")
    print(recipe_tables(given.configs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
