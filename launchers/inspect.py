"""`tandem inspect`: look into a prepared set, a run or a recording; numbers on the terminal, pictures into a folder."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.files import replace_file
from common.nearby import nearby
from common.printable import say
from data.convert.logs.first_settings import first_text, guess
from data.convert.logs.open import find_recordings, is_recording, open_recording
from data.convert.logs.overview import look_over
from data.storage.manifest import Manifest, load_manifest
from data.storage.reader import SampleError, SampleReader, blamed_on
from data.storage.shard import ShardError
from data.storage.store import MANIFEST_NAME, is_url
from launchers.cli import guarded
from launchers.drawing.calibration_pictures import calibration_view, check_set
from launchers.drawing.canvas import RgbImage, png_bytes
from launchers.drawing.page import TextTable, page
from launchers.drawing.recording_tables import recording_tables
from launchers.drawing.scenes import sample_views
from launchers.drawing.set_tables import look, sample_table, set_tables
from launchers.finetuning.run_frames import trained_network
from launchers.options.inspect import DRAWN_SAMPLES, parser
from launchers.reporting.run_pictures import run_pictures
from launchers.reporting.run_tables import run_tables
from launchers.reporting.scene_files import asks_for_scene, run_scene, set_scene, write_scenes
from launchers.runs.files import is_run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; 1 when damage was found."""
    p = parser()
    options = p.parse_args(argv)
    target = Path(options.target)
    if not is_url(options.target) and is_recording(target):
        if (
            options.sample
            or options.frame
            or options.check
            or options.calibration is not None
            or asks_for_scene(options)
        ):
            p.error(
                "--sample, --frame, --check, --calibration, --rerun and --foxglove are for sets and runs; "
                f"{target} is a recording"
            )
        return _inspect_recording(target, options)
    if options.settings:
        p.error(f"--settings is for recordings; {target} is none")
    if is_url(options.target) or (target / MANIFEST_NAME).is_file():
        if options.frame:
            p.error(f"--frame is for runs of tandem finetune; {target} is a prepared set, whose samples --sample names")
        return _inspect_set(options.target, options, p)
    if is_run(target):
        if options.sample or options.check or options.calibration is not None:
            p.error(f"--sample, --check and --calibration are for prepared sets; {target} is a run")
        if asks_for_scene(options):
            return write_scenes(options, lambda: run_scene(target, options))
        return _inspect_frames(target, options, p) if options.frame else _inspect_run(target, options)
    raise ShardError(
        f"{target} is neither a prepared set (no {MANIFEST_NAME}) nor a run (no config.yaml, no checkpoints) nor a "
        "recording (no ROS bag, no MCAP file); give the folder that `tandem prepare` or `tandem pretrain` wrote"
        f"{nearby(target, _can_be_shown)}"
    )


def _can_be_shown(folder: Path) -> bool:
    return (folder / MANIFEST_NAME).is_file() or is_run(folder)


# ---- sets


def _inspect_set(root: str, options: argparse.Namespace, p: argparse.ArgumentParser) -> int:
    manifest = load_manifest(root)
    try:
        asked = [find_sample(manifest, one) for one in options.sample]
    except ValueError as error:
        p.error(str(error))
    if asks_for_scene(options):
        return write_scenes(options, lambda: set_scene(manifest, options, asked))
    chosen = asked or _spread(manifest, _num(options))
    reader = SampleReader(manifest)
    looked = look(manifest, reader)
    tables = set_tables(manifest, looked)
    damaged = manifest.damaged_shards() if options.check else []
    if options.check:
        checksums = tuple((name, "damaged") for name in damaged) or (("every shard is intact",),)
        tables.append(TextTable(title="checksums", rows=checksums))
    pictures: dict[str, RgbImage] = {}
    bad_samples = list(looked.unusable)
    calibration = None
    if options.calibration is not None:
        judged = chosen if options.sample else _spread(manifest, options.calibration)
        calibration = check_set(manifest, reader, judged)
        tables += calibration.tables()
        bad_samples += calibration.damaged
    for index in chosen if options.out or options.sample else []:
        try:
            sample = reader.read(index, depth=True, image_labels=True)
            with blamed_on(sample.key, reader.shard_of(index)):
                if options.sample:
                    tables.append(sample_table(sample, index))
                if options.out:
                    for name, view in sample_views(sample, manifest.class_names, looked.extent).items():
                        pictures[f"{sample.key}: {name}"] = view
                    borders = None if calibration is None else calibration_view(sample, calibration)
                    if borders is not None:
                        pictures[f"{sample.key}: calibration"] = borders
        except SampleError as error:
            bad_samples.append((manifest.key(index), error.reason, error.detail))
    if bad_samples:
        rows = tuple(dict.fromkeys(bad_samples))
        tables.append(
            TextTable(title="samples that training would skip", header=("key", "reason", "detail"), rows=rows)
        )
    subtitle = f"prepared set {manifest.set_name!r} in {root}"
    _show(f"{manifest.set_name}: {len(manifest)} samples", subtitle, tables, pictures, options.out)
    return 1 if damaged or bad_samples else 0


def find_sample(manifest: Manifest, wanted: str) -> int:
    """Row of a sample given by key or by index (in log and time order, as a split of the whole set lists them).

    Raises:
        ValueError: no such sample; names the nearest keys.
    """
    rows = np.flatnonzero(manifest.keys == wanted.encode())  # first, since a key may look like an index
    if len(rows):
        return int(rows[0])
    if re.fullmatch(r"[0-9]+", wanted):
        if int(wanted) < len(manifest):
            return int(manifest.indices()[int(wanted)])
        raise ValueError(f"sample {wanted}: the set has {len(manifest)} samples, expected 0 to {len(manifest) - 1}")
    near = _nearest_keys(manifest, wanted)
    raise ValueError(f"sample {wanted!r}: no such key; did you mean {', '.join(near)}?")


def _nearest_keys(manifest: Manifest, wanted: str) -> list[str]:
    """Keys that share the longest beginning: keys are log and frame, so that is the same drive."""
    # Bounded: a message must not take minutes on a set of millions. Characters are compared, not parts of a path.
    prefix = os.path.commonprefix
    shared = [len(prefix([wanted, bytes(key).decode()])) for key in manifest.keys[:100_000]]
    best = np.argsort(-np.asarray(shared), kind="stable")[:3]
    return [manifest.key(int(row)) for row in best]


def _num(options: argparse.Namespace) -> int:
    return DRAWN_SAMPLES if options.num is None else int(options.num)


def _spread(manifest: Manifest, num: int) -> list[int]:
    """Samples at even distances through the set."""
    order = manifest.indices()
    at = np.unique(np.round(np.linspace(0, len(order) - 1, min(max(num, 0), len(order)))).astype(np.int64))
    return [int(row) for row in order[at]]


# ---- runs


def _inspect_run(run_dir: Path, options: argparse.Namespace) -> int:
    tables = run_tables(run_dir)
    pictures: dict[str, RgbImage] = {}
    if options.out:
        pictures, why_not = run_pictures(run_dir, _num(options))
        if why_not:
            tables.append(TextTable(title="pictures of features", rows=((why_not,),)))
    _show(f"run {run_dir.resolve().name}", str(run_dir), tables, pictures, options.out)
    return 0


def _inspect_frames(run_dir: Path, options: argparse.Namespace, p: argparse.ArgumentParser) -> int:
    """What a detector or a segmenter finds in the frames that are asked for."""
    run = trained_network(run_dir)
    try:
        chosen = [find_sample(run.shown.manifest, wanted) for wanted in options.frame]
    except ValueError as error:
        p.error(str(error))
    tables: list[TextTable] = []
    pictures: dict[str, RgbImage] = {}
    for index in chosen:
        frame = run.frame(index)
        tables.append(run.table(frame))
        if options.out:
            pictures |= run.views(frame)
    subtitle = f"{run_dir}, step {run.step}, frames of {run.shown.manifest.set_name}"
    _show(f"run {run_dir.resolve().name}", subtitle, tables, pictures, options.out)
    return 0


# ---- recordings


def _inspect_recording(target: Path, options: argparse.Namespace) -> int:
    """A recording; of a folder of several the first one, since those of one vehicle have the same topics."""
    recordings = find_recordings(target)
    name, paths = next(iter(recordings.items()))
    wanted = Path(options.settings) if options.settings else Path(options.out) / "topics.yaml" if options.out else None
    if options.settings and Path(options.settings).exists():
        raise ShardError(f"{options.settings} is there already; give another name, or remove it")
    with open_recording(paths) as recording:
        overview = look_over(recording)
    first = guess(overview)
    tables = recording_tables(overview, first, paths)
    if len(recordings) > 1:
        rows = tuple((one, f"{len(files)} file{'s' if len(files) > 1 else ''}") for one, files in recordings.items())
        tables.insert(0, TextTable(title=f"recordings in {target}, of which {name} is shown", rows=rows))
    hint = "" if wanted else "which topics are what, as a file to look over: add --settings FILE.yaml"
    _show(f"recording {name}", str(target), tables, {}, options.out, hint)
    if wanted and first.settings is None:
        raise ShardError(f"{target} has no topic of a LiDAR, so {wanted} is not written")
    if wanted and not wanted.exists():  # what a person has looked over stays
        replace_file(wanted, first_text(first, str(target)).encode(), durable=False)
        say(f"\n{wanted}: look it over, then `tandem prepare rosbag {target} OUT topics={wanted}`")
    return 1 if overview.problems else 0


# ---- output


def _show(
    title: str,
    subtitle: str,
    tables: list[TextTable],
    pictures: dict[str, RgbImage],
    out: str | None,
    hint: str = "pictures: add --out FOLDER",
) -> None:
    say(f"{title}\n{subtitle}\n")
    print("\n\n".join(table.text() for table in tables))
    if out is None:
        print(f"\n{hint}")
        return
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        # Keys come from files of strangers: nothing that a file system or a shell reads as more than a name.
        file_name = re.sub(r"[^A-Za-z0-9_.-]", "_", name.replace(": ", ".")).lstrip(".")[:150]
        replace_file(folder / f"{file_name}.png", png_bytes(picture), durable=False)
    sheet = folder / "inspect.html"
    replace_file(sheet, page(title, subtitle, tables, pictures).encode(), durable=False)
    say(f"\n{f'{len(pictures)} pictures and ' if pictures else ''}{sheet}")


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
