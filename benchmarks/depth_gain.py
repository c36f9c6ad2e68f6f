"""Why depth from single images gains by pre-training, or does not: the street world, one thing changed at a time.

    tandem pretrain moco_street data.shards=SET run_dir=runs/moco-0 seed=0 'evaluate.configs=[]'      # and seeds 1, 2
    python -m benchmarks.depth_gain --shards SET --runs runs/moco-0 runs/moco-1 runs/moco-2
    python -m benchmarks.depth_gain --shards SET --runs runs/moco-0 runs/moco-1 runs/moco-2 --settings small few
    python -m benchmarks.depth_gain --shards SET --runs runs/moco-0 --more simipu=runs/simipu-0 --settings
    python -m benchmarks.depth_gain --shards KITTI --runs runs/moco-0 --settings --overrides images.depth=lidar ...

Two questions, from cheap to dear; each answer is a table on the terminal and in `--root`:

1. *Probe.* What do frozen features know of depth? `benchmarks.depth_probe`.
2. *Training.* `tandem evaluate`'s protocol with settings changed one at a time (`SETTINGS`), paired with random
   initialisation on the same draws and with its own tuned rate; RMSE of logs. Bold: beyond chance, as in reports. What
   the root's results hold is not measured again.

Beside the runs stands EfficientNet-Lite0 with ImageNet's weights (installed with Tandem; it has seen labels) against
its own random initialisation: what this protocol shows of a network that is known to be good.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common import REPOSITORY, markdown, setting
from benchmarks.depth_networks import SEEDS, Family, family_of, job_for, lite0_family, read
from benchmarks.depth_probe import HEADS, Places, probe
from benchmarks.methods import gain_text
from common.run_files import RESULTS_FILE
from configs.load import load
from configs.schema import EvaluateConfig
from engine.downstream.results import Result, read_results, write_results
from engine.downstream.runner import measure

CONFIG = REPOSITORY / "configs" / "downstream" / "street_depth.yaml"
TABLE = "depth_gain.md"
SMALL = ("images.size=[64,128]", "depth.steps=100")
"""A fifth of the cost of the config as it is."""
LOW = "depth.lrs=[0.0001,0.0003,0.001]"
"""Of frozen networks, whose best rate is the least of the config's."""
FEW = ("fraction.kind=random", "fraction.count=8")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One change to the protocol: overrides of `CONFIG`, and what they are, for the table."""

    overrides: tuple[str, ...]
    about: str


SETTINGS: dict[str, Setting] = {
    "full": Setting(overrides=(), about="the config as it is: 120 frames, 150 updates, 96 x 192 pixels"),
    "small": Setting(overrides=SMALL, about="100 updates, 64 x 128 pixels"),
    "frozen": Setting(overrides=(*SMALL, "protocols=[depth_frozen]"), about="small, the network frozen"),
    "few": Setting(overrides=(*SMALL, *FEW), about="small, 8 labelled frames"),
    "few_frozen": Setting(
        overrides=(*SMALL, *FEW, "protocols=[depth_frozen]", LOW), about="small, frozen, 8 labelled frames"
    ),
    "gentle": Setting(
        overrides=(*SMALL, "depth.decoder_lr_scale=30", "depth.lrs=[0.00003,0.0001,0.0003]"),
        about="small, the network's rates a tenth, the decoder's the same",
    ),
    "long": Setting(overrides=(SMALL[0], "depth.steps=400"), about="small, 400 updates"),
    "long_few": Setting(overrides=(SMALL[0], "depth.steps=400", *FEW), about="small, 400 updates, 8 labelled frames"),
    "papers": Setting(
        overrides=(*SMALL, "depth.decoder=densedepth", "depth.root_scale=10", "depth.scale_invariance=0.85"),
        about="small, the literature's decoder and loss",
    ),
}


def probe_table(families: dict[str, Family], shards: str, root: Path, config: EvaluateConfig) -> str:
    """What the place says, R2 by head, and ranks."""
    rows, text = [], ""
    for name, family in families.items():
        job = job_for(family, shards, config, root / "probe" / name)
        places = Places(read(job, job.fit_and_held()[0]))
        text = text or ", ".join(f"{key} {value:.3f}" for key, value in places.metrics(job).items())
        for init in (family.random, family.pretrained):
            values = probe(job, init, places)
            cells = (", ".join(f"{one.explained[head]:.2f}" for one in values) for head in range(len(HEADS)))
            ranks = "; ".join(", ".join(f"{rank:.0f}" for rank in one.ranks) for one in values)
            of = ", ".join(map(str, values[0].channels))
            rows.append([name if init.pretrained else f"random, as {name}", *cells, f"{ranks} of {of}"])
            print(rows[-1], flush=True)
    return f"Mean of the place: {text}\n\n" + markdown(
        ["R2 by the features of", *HEADS, "effective rank of maps"], rows
    )


def train_table(families: dict[str, Family], shards: str, root: Path, chosen: Sequence[str], own: Sequence[str]) -> str:
    """Training, setting by setting."""
    rows = []
    for name in chosen:
        one = SETTINGS[name]
        config = load(EvaluateConfig, str(CONFIG), _overrides((*one.overrides, *own)))
        for key, family in families.items():
            folder = root / name / key
            random, ours = _measured(family, shards, config, folder)
            rates = " / ".join(f"{result.lr[0]:g}" for result in (random, ours))
            shown = (result.measure.text(result.mean, result.std) for result in (random, ours))
            rows.append([one.about, key, *shown, gain_text([ours], [random]), rates])
            print(rows[-1], flush=True)
    header = ["setting", "network", "random", "pre-trained", "difference (less is better)", "rates"]
    return markdown(header, rows)


def _measured(family: Family, shards: str, config: EvaluateConfig, folder: Path) -> tuple[Result, Result]:
    path, job = folder / RESULTS_FILE, job_for(family, shards, config, folder)
    results = []
    for init in (family.random, family.pretrained):
        known = read_results(path) if path.exists() else []
        (result,) = measure([init], job, known=known)
        if result not in known:
            write_results(path, [result])
        results.append(result)
    return results[0], results[1]


def _overrides(own: Sequence[str]) -> list[str]:
    return ["protocols=[depth]", f"depth.seeds={list(SEEDS)}", *own]


def main() -> None:
    """Parse, measure, write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", required=True, help="a prepared set of the street world")
    parser.add_argument("--runs", nargs="+", required=True, type=Path, metavar="RUN", help="repetitions of one method")
    parser.add_argument("--more", nargs="*", default=[], metavar="NAME=RUN", help="further methods")
    parser.add_argument("--root", type=Path, default=Path("runs/depth_gain"), help="folder of results and pictures")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), help="none of them: the probe alone")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these families (the runs' method, imagenet, NAMEs)")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="section.field=value", help="for all of it")
    parser.add_argument("--no-probe", action="store_true", help="training alone")
    options = parser.parse_args()
    if unknown := set(options.settings) - set(SETTINGS):
        parser.error(f"--settings {unknown.pop()}: expected names among {', '.join(SETTINGS)}")
    config = load(EvaluateConfig, str(CONFIG), _overrides(options.overrides))
    first = family_of(options.runs, config)
    families = {first.pretrained.name: first, "imagenet": lite0_family(first.run)}
    for given in options.more:
        name, _, path = given.partition("=")
        families[name] = family_of([Path(path)], config)
    if unknown := set(options.only or ()) - set(families):
        parser.error(f"--only {unknown.pop()}: expected names among {', '.join(families)}")
    families = {name: family for name, family in families.items() if not options.only or name in options.only}
    options.root.mkdir(parents=True, exist_ok=True)
    texts = [setting(0)]
    if not options.no_probe:
        texts.append(probe_table(families, options.shards, options.root, config))
    if options.settings:
        texts.append(train_table(families, options.shards, options.root, options.settings, options.overrides))
    text = "\n\n".join(texts)
    (options.root / TABLE).write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
