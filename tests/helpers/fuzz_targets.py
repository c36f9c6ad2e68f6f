"""What the fuzzer damages: parts of a prepared set, and the raw files of each data set.

A target is a folder that `build` makes once, a way to damage one of its files, and a way to read it as users do. `run`
says "fine", "skipped" (counted, by reason) or "named" (a `ShardError`); anything else that comes out is a bug.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.batch_spec import BatchSpec
from data.convert.base import Converter, Skipped
from data.convert.sets import SETTINGS
from data.loading.evaluation import load_batch
from data.preparing.prepare import PrepareConfig, prepare
from data.preparing.shard_task import RECORDS, plan_tasks
from data.preparing.verify import verify
from data.sample import Sample
from data.storage.damage import REASONS, DamagedError
from data.storage.encode import CodecConfig, encode_sample
from data.storage.manifest import SAMPLE_COLUMNS, load_manifest
from data.storage.manifest_writer import write_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.views.view import ViewConfig
from tests.helpers.fuzz_sources import OWN_SETTINGS, SOURCES
from tests.helpers.mutations import Mutation, Rng, mutate
from tests.helpers.samples import full_sample, toy_log, write_toy_set
from tests.helpers.toy_converter import ToyConverter


@dataclass(frozen=True, kw_only=True)
class Target:
    """Something to damage.

    Attributes:
        name: for the report.
        build: makes the folder.
        strike: damages it; returns what was done and how it is undone.
        run: reads it: "fine", "skipped" or "named".
    """

    name: str
    build: Callable[[Path], None]
    strike: Callable[[Rng, Path, str], tuple[str, Callable[[], None]]]
    run: Callable[[Path], str]


def _all(undos: Sequence[Callable[[], None]]) -> Callable[[], None]:
    def undo() -> None:
        for one in undos:
            one()

    return undo


def _restore(path: Path, data: bytes) -> Callable[[], None]:
    def undo() -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.write_bytes(data)

    return undo


# ---- prepared sets
def _build_set(root: Path) -> None:
    write_toy_set(root, num_logs=2, frames_per_log=2, num_points=60, image_labels=True)
    shutil.copy(root / "shard-000000.tar", root.parent / "outside.tar")


_VIEWS = ViewConfig(image_size=(24, 48))


def _read_set(root: Path) -> str:
    """All that a loader and `--verify` do; a path that leads out of the folder must not be followed."""
    try:
        manifest = load_manifest(str(root))
        manifest.indices()
        manifest.fingerprint()
        verdict = verify(str(root))
    except ShardError:
        return "named"
    unforeseen = [problem for problem in verdict.problems if problem.reason == "error"]
    assert not unforeseen, unforeseen[0]  # counted, but with an exception that nobody expected
    if verdict.problems:
        return "skipped"
    reader = SampleReader(manifest)
    for row in range(len(manifest)):
        load_batch(reader, [row], _VIEWS, BatchSpec())  # what `verify` finds whole is never skipped
    return "fine"


def _strike_tar(rng: Rng, root: Path, canary: str) -> tuple[str, Callable[[], None]]:
    """The tar changed, every second time with checksums that fit, as who means harm would leave them."""
    path = root / "shard-000000.tar"
    data = path.read_bytes()
    label, changed = mutate(rng, path.name, data, canary)
    path.write_bytes(changed)
    files = [_restore(path, data)]
    if rng.random() < 0.5:
        files.append(_right_checksums(root, path, changed))
        label += ", checksums fit"
    return label, _all(files)


def _right_checksums(root: Path, path: Path, data: bytes) -> Callable[[], None]:
    table, manifest = (root / "samples.npz").read_bytes(), (root / "manifest.json").read_bytes()
    with np.load(io.BytesIO(table)) as archive:
        columns = {name: archive[name] for name in archive.files}
    for row in np.flatnonzero(columns["sample_shard"] == 0):
        start = int(columns["sample_offset"][row])
        columns["sample_crc32"][row] = zlib.crc32(data[start : start + int(columns["sample_size"][row])])
    content = json.loads(manifest)
    content["shards"][0] |= {"num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    _write_manifest(root, content, columns)
    undo = (_restore(root / "samples.npz", table), _restore(root / "manifest.json", manifest))
    return _all(undo)


def _write_manifest(root: Path, content: dict[str, object], columns: dict[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **columns)  # type: ignore[arg-type]
    content["table_sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    content["table_bytes"] = len(buffer.getvalue())
    (root / "samples.npz").write_bytes(buffer.getvalue())
    (root / "manifest.json").write_text(json.dumps(content))


def _strike_member(rng: Rng, root: Path, canary: str) -> tuple[str, Callable[[], None]]:
    """One file of a sample changed, checksums right: only the content is at fault."""
    whole = bool(rng.integers(2))
    sample = full_sample(rng) if whole else toy_log(int(rng.integers(3)), 1, num_points=60, image_labels=True)[0]
    members = encode_sample(sample, CodecConfig())
    chosen = sorted(members)[int(rng.integers(len(members)))]
    choice = rng.random()
    if choice < 0.1:
        other = sorted(members)[int(rng.integers(len(members)))]
        label = f"{chosen} holds {other}"
        members[chosen] = members[other]
    else:
        what, members[chosen] = mutate(rng, chosen, members[chosen], canary)
        label = f"{chosen}: {what}"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in sorted(members.items()):
            info = tarfile.TarInfo(f"{sample.key}.{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        size = archive.offset
    path, before = root / "shard-000000.tar", {name: (root / name).read_bytes() for name in _SET_FILES}
    path.write_bytes(buffer.getvalue())
    columns = {name: np.zeros(1, kind) for name, kind in SAMPLE_COLUMNS.items()} | {
        "keys": np.array([sample.key.encode()])
    }
    columns["sample_size"][0], columns["sample_crc32"][0] = size, zlib.crc32(buffer.getvalue()[:size])
    content = json.loads(before["manifest.json"])
    content |= {"num_samples": 1, "logs": content["logs"][:1]}
    shard = {"file": path.name, "num_samples": 1, "num_bytes": len(buffer.getvalue())}
    content["shards"] = [shard | {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}]
    _write_manifest(root, content, columns)
    return label, _all([_restore(root / name, data) for name, data in before.items()])


_SET_FILES = ("shard-000000.tar", "samples.npz", "manifest.json")


def _strike_manifest(rng: Rng, root: Path, canary: str) -> tuple[str, Callable[[], None]]:
    path = root / "manifest.json"
    data = path.read_bytes()
    if rng.random() < 0.2:
        content = json.loads(data)
        names = ("../outside.tar", str(root.parent / "outside.tar"), "a/../../outside.tar", "..", "", "x\0", "con:")
        label = f"escape: shard {names[int(rng.integers(len(names)))]!r}"
        content["shards"][0]["file"] = label.split(" ", 2)[2].strip("'").replace("\\x00", "\0")
        path.write_text(json.dumps(content))
    else:
        label, changed = mutate(rng, path.name, data, canary)
        path.write_bytes(changed)
    return label, _restore(path, data)


def _strike_table(rng: Rng, root: Path, canary: str) -> tuple[str, Callable[[], None]]:
    path, manifest = root / "samples.npz", root / "manifest.json"
    data, stated = path.read_bytes(), manifest.read_bytes()
    label, changed = mutate(rng, path.name, data, canary)
    path.write_bytes(changed)
    content = json.loads(stated)
    if rng.random() < 0.9:
        content |= {"table_sha256": hashlib.sha256(changed).hexdigest(), "table_bytes": len(changed)}
    manifest.write_text(json.dumps(content))
    undo = (_restore(path, data), _restore(manifest, stated))
    return label, _all(undo)


def _build_columns(root: Path) -> None:
    """A set whose shards, logs and index are columns of its table, as large ones have them."""
    _build_set(root)
    write_manifest(load_manifest(str(root)), columnar=True)


def _strike_columns(rng: Rng, root: Path, canary: str) -> tuple[str, Callable[[], None]]:
    """The table, or one of its columns with any numbers in it, with a checksum that fits; or the manifest."""
    choice, path = rng.random(), root / "manifest.json"
    if choice < 0.3:
        return _strike_table(rng, root, canary)
    data, table = path.read_bytes(), (root / "samples.npz").read_bytes()
    undo = _all([_restore(path, data), _restore(root / "samples.npz", table)])
    if choice < 0.5:
        label, changed = mutate(rng, path.name, data, canary)
        path.write_bytes(changed)
        return label, undo
    with np.load(io.BytesIO(table)) as archive:
        columns = {name: archive[name] for name in archive.files}
    name = sorted(columns)[int(rng.integers(len(columns)))]
    raw = bytearray(columns[name].tobytes())
    for place in rng.integers(len(raw), size=int(rng.integers(1, 4))):
        raw[place] = int(rng.integers(256))
    columns[name] = np.frombuffer(bytes(raw), columns[name].dtype)
    _write_manifest(root, json.loads(data), columns)
    return f"{name} changed", undo


# ---- sets in the making
_TOY = ToyConverter(frames_by_log=(2, 1))
_MAKING = PrepareConfig(samples_per_shard=1, superpixels=None, max_skip_share=1.0)


def _build_making(root: Path) -> None:
    prepare(_TOY, str(root), _MAKING)
    shutil.copytree(root, root.parent / f"{root.name}.whole")


def _strike_record(rng: Rng, root: Path, canary: str) -> tuple[str, Callable[[], None]]:
    files = sorted(path for path in (root / RECORDS).iterdir() if path.suffix == ".json")
    path = files[int(rng.integers(len(files)))]
    label, changed = mutate(rng, path.name, path.read_bytes(), canary)
    path.write_bytes(changed)

    def undo() -> None:
        shutil.rmtree(root)
        shutil.copytree(root.parent / f"{root.name}.whole", root)

    return f"{path.name}: {label}", undo


def _continue(root: Path) -> str:
    try:
        prepare(_TOY, str(root), _MAKING, verify=True)
    except ShardError:
        return "named"
    return "skipped" if verify(str(root)).problems else "fine"


# ---- sources
def _build_source(write: Callable[[Path], object], root: Path) -> None:
    root.mkdir()
    write(root)


def _strike_source(rng: Rng, root: Path, canary: str) -> tuple[str, Callable[[], None]]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    data, name = path.read_bytes(), str(path.relative_to(root))
    choice = rng.random()
    if choice < 0.05:
        path.unlink()
        return f"{name} gone", _restore(path, data)
    if choice < 0.08:
        path.unlink()
        path.mkdir()
        return f"{name} is a folder", _restore(path, data)
    if choice < 0.1:
        path.unlink()
        os.symlink(path.name, path)
        return f"{name} is a link to itself", _restore(path, data)
    if choice < 0.15:
        other = files[int(rng.integers(len(files)))]
        path.write_bytes(other.read_bytes())
        return f"{name} holds {other.relative_to(root)}", _restore(path, data)
    label, changed = mutate(rng, path.name, data, canary)
    path.write_bytes(changed)
    return f"{name}: {label}", _restore(path, data)


def _convert(name: str, root: Path) -> str:
    """As `prepare` does, without writing."""
    skips = 0
    try:
        converter = SETTINGS[name.split()[0]](source=str(root), **OWN_SETTINGS.get(name, {}))
        for item in _items(converter):
            if isinstance(item, Skipped):
                assert item.reason in REASONS, item.reason
                skips += 1
                continue
            try:
                encode_sample(item, CodecConfig())
            except DamagedError:
                skips += 1
    except ShardError:
        return "named"
    return "skipped" if skips else "fine"


def _items(converter: Converter) -> Iterator[Sample | Skipped]:
    plan_tasks(converter, 64, None)
    converter.camera_names()
    converter.notes()
    for log in converter.logs():
        converter.split_of(log)
        yield from converter.frames(log, 0, converter.num_frames(log))


def targets() -> list[Target]:
    """All of them, parts of prepared sets first."""
    found = [
        Target(name="set: member", build=_build_set, strike=_strike_member, run=_read_set),
        Target(name="set: tar", build=_build_set, strike=_strike_tar, run=_read_set),
        Target(name="set: manifest", build=_build_set, strike=_strike_manifest, run=_read_set),
        Target(name="set: table", build=_build_set, strike=_strike_table, run=_read_set),
        Target(name="set: columns", build=_build_columns, strike=_strike_columns, run=_read_set),
        Target(name="record", build=_build_making, strike=_strike_record, run=_continue),
    ]
    for name, write in SOURCES.items():
        found.append(
            Target(
                name=f"raw: {name}",
                build=functools.partial(_build_source, write),
                strike=_strike_source,
                run=functools.partial(_convert, name),
            )
        )
    return found


__all__ = ["Mutation", "Target", "targets"]
