"""`tandem fit`: will weights trained on one sensor serve another? Tables on the terminal, pictures into a folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common.files import replace_file
from common.nearby import nearby
from common.printable import say
from configs.load import ArgumentError
from configs.runs import RunConfig
from data.storage.manifest import load_manifest
from data.storage.mixture import open_sets
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.storage.store import MANIFEST_NAME, is_url
from launchers.cli import guarded
from launchers.drawing.canvas import png_bytes
from launchers.drawing.page import page
from launchers.fitting.compare import compared
from launchers.fitting.sensors import Sensors, from_json, measured, to_json
from launchers.fitting.sheet import pictures, tables, verdict
from launchers.options.fit import parser
from launchers.runs.changes import saved_config
from launchers.runs.files import SENSORS_FILE, is_run, read_config


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 0 whatever differs."""
    options = parser().parse_args(argv)
    run = Path(options.run)
    if not is_run(run):
        raise ArgumentError(f"{run} is no run's folder{nearby(run, is_run) or '; give the one that training wrote'}")
    config = saved_config(read_config(run, strict=True), run)
    trained = sensors_of_run(run, config)
    if options.set is None:
        say(f"{run / SENSORS_FILE} has the sensors of {trained.set_name}, from {trained.num_sweeps} sweeps")
        return 0
    other = sensors_of_set(options.set, options.split, config)
    found = compared(trained, other, config)
    if options.json:
        sides = {"trained": dataclasses.asdict(trained), "other": dataclasses.asdict(other)}
        print(json.dumps(sides | {"comparison": [dataclasses.asdict(one) for one in found]}, indent=1))
        return 0
    shown = tables(found, trained, other)
    say(f"{run} on {options.set}\n\n" + "\n\n".join(table.text() for table in shown) + f"\n\n{verdict(found)}")
    if options.out:
        folder = Path(options.out)
        folder.mkdir(parents=True, exist_ok=True)
        drawn = pictures(trained, other)
        replace_file(folder / "fit.png", png_bytes(next(iter(drawn.values()))), durable=False)
        text = page(f"{run.name} on {other.set_name}", verdict(found), shown, drawn)
        replace_file(folder / "fit.html", text.encode(), durable=False)
        say(f"{folder / 'fit.html'}")
    return 0


def sensors_of_run(run: Path, config: RunConfig) -> Sensors:
    """Of the set that it was trained on: measured, and kept in the run's folder; or what was kept, if the set is gone.

    Raises:
        ShardError: the set is not where the run found it, and nothing was kept.
    """
    kept = run / SENSORS_FILE
    gone = [
        one.shards
        for one in config.data.sets
        if not is_url(one.shards) and not (Path(one.shards) / MANIFEST_NAME).is_file()
    ]
    if gone:
        if kept.is_file():
            return from_json(kept)
        raise ShardError(
            f"the run's set is not at {gone[0]} (seen from the present folder), and {kept} is not there: start the "
            "command where the run was started, or `tandem fit RUN` once while the set is still there"
        )
    opened = open_sets(config.data.sets, config.data.cache)
    found = measured(opened.reader.manifest, opened.reader, opened.indices, config.data.voxel)
    text = to_json(found, config.data.voxel)
    if not kept.is_file() or kept.read_text(encoding="utf-8", errors="replace") != text:
        try:
            replace_file(kept, text.encode(), durable=False)
        except OSError as error:  # somebody else's run may be read only
            say(f"note: {kept} cannot be written ({error.strerror}); once the set is gone, it cannot be compared")
    return found


def sensors_of_set(root: str, split: str | None, config: RunConfig) -> Sensors:
    """Of any prepared set, on the run's grid.

    Raises:
        ShardError: no prepared set, or no samples in the split.
    """
    manifest = load_manifest(root)
    return measured(manifest, SampleReader(manifest), manifest.indices(split), config.data.voxel)


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
