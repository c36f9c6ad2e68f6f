"""Files from elsewhere: what is data is read, what is no file of weights is called by its name, nothing is executed."""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import pathlib
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.weight_files import read_checkpoint
from tests.helpers.mutations import mutate

WEIGHT = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize("protocol", [2, 4])
def test_containers_of_training_scripts_are_read_as_data(tmp_path: Path, protocol: int) -> None:
    counts: collections.defaultdict[str, list[int]] = collections.defaultdict(list, seen=[1])
    content = {
        "state_dict": collections.OrderedDict(weight=WEIGHT),
        "as_array": np.asfortranarray(WEIGHT.numpy()),
        "half": np.arange(4, dtype=np.float16),
        "best": np.float64(0.75),
        "epoch": np.int64(7),
        "flags": np.array([True, False]),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "names": np.array(["a", "b"]),
        "counts": counts,
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/x")),
    }
    if protocol == 4:  # torch reads protocol 2 alone, and that is what it writes
        torch.save(content, tmp_path / "run.pth", pickle_protocol=4)
        with (
            pytest.raises(ValueError, match=r"run\.pth is pickled in another protocol"),
            pytest.warns(UserWarning, match="protocol 4"),
        ):
            read_checkpoint(tmp_path / "run.pth")
        return
    torch.save(content, tmp_path / "run.pth")
    read = read_checkpoint(tmp_path / "run.pth")
    assert torch.equal(read["state_dict"]["weight"], WEIGHT)  # type: ignore[index]
    assert torch.equal(read["as_array"], WEIGHT)  # type: ignore[arg-type]
    assert torch.equal(read["half"], torch.arange(4, dtype=torch.float16))  # type: ignore[arg-type]
    assert torch.equal(read["flags"], torch.tensor([True, False]))  # type: ignore[arg-type]
    assert torch.equal(read["empty"], torch.zeros(0, 3))  # type: ignore[arg-type]
    assert (read["best"], read["epoch"], read["names"], read["counts"]) == (0.75, 7, None, {"seen": [1]})
    assert type(read["counts"]) is dict
    assert read["args"].lr == 0.1  # type: ignore[attr-defined]


def test_a_foreign_class_is_named_and_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_project")
    for name in ("HistoryBuffer", "Config"):
        kind = type(name, (), {"__module__": "their_project"})
        setattr(module, name, kind)
    monkeypatch.setitem(sys.modules, "their_project", module)
    torch.save({"w": WEIGHT, "a": module.HistoryBuffer(), "b": module.Config()}, tmp_path / "run.pth")
    monkeypatch.delitem(sys.modules, "their_project")
    with pytest.raises(
        ValueError, match=r"holds an object of their_project\.HistoryBuffer \(and their_project\.Config\)"
    ) as caught:
        read_checkpoint(tmp_path / "run.pth")
    assert "torch.save({k: v" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "their_project" not in sys.modules


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 346000000\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Drive - Quota\nexceeded</title></head></html>"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PAGE, "is a web page ('Drive - Quota exceeded'), not weights"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a web page, not weights"),
        (POINTER, "is a Git LFS pointer for a file of 330.0 MiB, not the weights; fetch them with `git lfs pull`"),
        (b"", "is empty; download it again"),
        (b'{"error": "not found"}', 'is text, not weights: it begins with \'{"error"'),
        (gzip.compress(b"x" * 100, mtime=0), "is a compressed archive; unpack it"),
        (b"\x80\x02no weights at all" * 10, "cannot be read as tensors and plain values"),
    ],
)
@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
def test_what_is_no_file_of_weights_is_called_by_its_name(
    content: bytes, words: str, name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^weights: ") as caught:
        read_checkpoint(tmp_path / name)
    assert f"{tmp_path / name} {words}" in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_archives_are_told_from_checkpoints(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        for name in ("code/__torch__.py", "constants.pkl", "data.pkl"):
            archive.writestr(f"program/{name}", b"")
    with pytest.raises(ValueError, match="is a TorchScript program"):
        read_checkpoint(tmp_path / "program.pt")
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("readme.txt", json.dumps({}))
    with pytest.raises(ValueError, match=r"is a ZIP archive that torch\.save did not write"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_damaged_file_is_refused_whatever_reading_it_raises(tmp_path: Path) -> None:
    content = {"w": WEIGHT, "array": WEIGHT.numpy(), "nested": {"a": [1.0, "b"]}}
    files = {}
    for name, zipped in (("zip.pth", True), ("old.pth", False)):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=zipped)
        files[name] = (tmp_path / name).read_bytes()
    save_file({"w": WEIGHT}, tmp_path / "a.safetensors")
    files["a.safetensors"] = (tmp_path / "a.safetensors").read_bytes()
    refused = collections.Counter[str]()
    for number in range(600):
        rng = np.random.default_rng([0, number])
        name = list(files)[number % len(files)]
        label, damaged = mutate(rng, "file", files[name], str(tmp_path / "canary"))
        (tmp_path / name).write_bytes(damaged)
        try:
            read_checkpoint(tmp_path / name)
        except ValueError as error:
            assert str(error).startswith(f"weights: {tmp_path / name} "), f"{number}: {label}"  # noqa: PT017
            refused[name] += 1
    assert all(refused[name] > 60 for name in files), refused
    assert not (tmp_path / "canary").exists()
    endless: dict[str, object] = {}
    endless["itself"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(ValueError, match=r"endless\.pth cannot be read .*recursion"):
        read_checkpoint(tmp_path / "endless.pth")


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    save_file({"w": WEIGHT}, tmp_path / "a.pth")
    torch.save({"w": WEIGHT}, tmp_path / "b.safetensors")
    torch.save({"w": WEIGHT}, tmp_path / "c", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "b.safetensors", "c"):
        assert torch.equal(read_checkpoint(tmp_path / name)["w"], WEIGHT)  # type: ignore[arg-type]
