"""Files from elsewhere: what is data is read, what is no file of weights is called by its name, nothing is executed."""

from __future__ import annotations

import argparse
import collections
import gzip
import json
import os
import pathlib
import pickle
import sys
import time
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.pickled_values import Ignored
from models.weight_files import read_checkpoint, read_weight_content
from tests.helpers.mutations import mutate

WEIGHT = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "row"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_containers_of_training_scripts_are_read_as_data(tmp_path: Path, protocol: int, zipped: bool) -> None:
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
        "seen": {3},
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("/x")),
    }
    torch.save(content, tmp_path / "run.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = read_weight_content(tmp_path / "run.pth")
    assert found.not_used() == ""
    read: dict[str, Any] = found.content
    assert torch.equal(read["state_dict"]["weight"], WEIGHT)
    assert torch.equal(read["as_array"], WEIGHT)
    assert torch.equal(read["half"], torch.arange(4, dtype=torch.float16))
    assert torch.equal(read["flags"], torch.tensor([True, False]))
    assert torch.equal(read["empty"], torch.zeros(0, 3))
    assert (read["best"], read["epoch"], read["names"], read["counts"]) == (0.75, 7, None, {"seen": [1]})
    assert type(read["counts"]) is dict
    assert read["seen"] == [3]
    assert read["args"].lr == 0.1


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "row"])
def test_tensors_are_what_torch_reads(tmp_path: Path, zipped: bool) -> None:
    """Of each type, strided, shared, without values; and the versions of a state dict's modules."""
    numbers = torch.arange(-6, 6)
    types = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "bool", "complex64")
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    content: dict[str, Any] = {
        **{name: numbers.to(getattr(torch, name)) for name in types},
        "uint8": torch.arange(5, dtype=torch.uint8),
        "turned": WEIGHT.T,
        "part": WEIGHT[1, 1:],
        "same": WEIGHT,
        "spread": torch.ones(1).expand(4),
        "number": torch.tensor(3.0),
        "none": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(WEIGHT.clone()),
        "state": network.state_dict(),
    }
    if zipped:
        content["float8"] = torch.ones(3).to(torch.float8_e4m3fn)
        content["uint16"] = torch.arange(3).to(torch.uint16)
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    expected = torch.load(tmp_path / "a.pth", weights_only=True)
    read: dict[str, Any] = read_checkpoint(tmp_path / "a.pth")
    assert [*read] == [*expected]
    state, theirs = read.pop("state"), expected.pop("state")
    assert state._metadata == theirs._metadata
    for key, value in (*expected.items(), *((f"state.{k}", v) for k, v in theirs.items())):
        mine = state[key.removeprefix("state.")] if key.startswith("state.") else read[key]
        assert (mine.dtype, mine.shape, mine.stride()) == (value.dtype, value.shape, value.stride()), key
        assert torch.equal(
            mine.view(torch.uint8) if key == "float8" else mine,
            value.view(mine.dtype) if key != "float8" else value.view(torch.uint8),
        ), key
    assert read["same"].data_ptr() == read["turned"].data_ptr()


def test_bytes_of_python_2_are_read(tmp_path: Path) -> None:
    """Names as byte strings, an ordered mapping that is given its entries as lists."""
    row = b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
    row += b"U\x02f8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    row += b"U\x08" + np.float64(2.5).tobytes() + b"\x86R."
    pairs = b"\x80\x02ccollections\nOrderedDict\n]](U\x01aK\x07ea\x85R."
    content = b"\x80\x02}(U\x04best" + row[2:-1] + b"U\x04dict" + pairs[2:-1] + b"u."
    header = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    (tmp_path / "old.pth").write_bytes(header + content + pickle.dumps([], 2))
    assert read_checkpoint(tmp_path / "old.pth") == {"best": 2.5, "dict": {"a": 7}}


class Marker:
    """Whatever makes, calls or restores one of these leaves a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return _touch, (str(self.folder / "called"),), {"folder": self.folder}, iter([1]), iter([("a", 2)])

    def __setstate__(self, state: object) -> None:
        raise AssertionError("restored")


def _touch(name: str) -> Marker:
    Path(name).touch()
    return Marker(Path(name).parent)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "row"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_foreign_classes_are_left_out_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, protocol: int, zipped: bool
) -> None:
    """A module that notices its own import, classes that notice that they are made, a call that leaves a file."""
    module = types.ModuleType("their_project")
    for name, base in (("HistoryBuffer", object), ("Config", dict), ("Row", list)):
        setattr(module, name, type(name, (base,), {"__module__": "their_project"}))
    monkeypatch.setitem(sys.modules, "their_project", module)
    buffer, config = module.HistoryBuffer(), module.Config(lr=0.1, weight=WEIGHT)
    buffer.seen = [1, 2]
    content = {"w": WEIGHT, "a": buffer, "b": config, "c": module.Row([1, 2]), "d": Marker(tmp_path), "e": os.mkdir}
    torch.save(content, tmp_path / "run.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "their_project")
    (tmp_path / "their_project.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    found = read_weight_content(tmp_path / "run.pth")
    assert torch.equal(found.content["w"], WEIGHT)  # type: ignore[arg-type]
    assert found.content["a"] == Ignored("their_project.HistoryBuffer")
    assert torch.equal(found.content["b"]["weight"], WEIGHT)  # type: ignore[index]
    assert found.content["c"] == [1, 2]
    assert found.content["d"] == {"a": 2}
    here = __name__
    expected = ("their_project.HistoryBuffer", "their_project.Config", "their_project.Row", f"{here}._touch")
    assert found.ignored == (*expected, f"{os.name}.mkdir")
    assert "nothing built or called of their_project.HistoryBuffer, their_project.Config" in found.not_used()
    assert not {"called", "imported"} & {path.name for path in tmp_path.iterdir()}
    assert "their_project" not in sys.modules
    read_checkpoint(tmp_path / "run.pth")
    read_checkpoint(tmp_path / "run.pth")
    assert caplog.text.count("run.pth: read as data, and nothing built or called of their_project") == 1


def test_a_whole_network_gives_its_state_dict(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3), torch.nn.ReLU())
            self.again = self.layers[0]
            self.register_buffer("grid", torch.ones(2), persistent=False)

    Net.__qualname__ = "Net"
    Net.__module__ = __name__
    globals()["Net"] = Net
    network = Net()
    torch.save({"model": network, "epoch": 3}, tmp_path / "whole.pth")
    del globals()["Net"]
    found = read_weight_content(tmp_path / "whole.pth")
    model: Any = found.content["model"]
    assert {*model} == {*network.state_dict()}
    assert all(torch.equal(model[key], value) for key, value in network.state_dict().items())
    assert f"{__name__}.Net" in found.modules
    assert "of the networks" in found.not_used()
    torch.save(network.layers, tmp_path / "bare.pth")
    assert [*read_checkpoint(tmp_path / "bare.pth")][:2] == ["0.weight", "0.bias"]


def row_file(content: bytes, keys: bytes = b"\x80\x02].") -> bytes:
    """An older file with these pickles."""
    header = (pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    return b"".join((*header, content, keys))


LAUGHS = b")\x94" + b"".join(b"0h%ch%c\x86\x94" % (i, i) for i in range(60))
"""A tuple of itself twice, 60 levels deep: walking it would take 2**60 steps."""
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x80\x02}X\x01\x00\x00\x00a" + LAUGHS + b"s.", ""),
        (b"\x80\x02}" + LAUGHS + b"Ns.", "has a key of type tuple"),
        (b"\x80\x02" + LAUGHS + b"Q.", "has a tuple in the place of a text"),
        (b"\x80\x02}X\x01\x00\x00\x00a" + REBUILD + LAUGHS + b"R" + b"s.", "not enough values"),
        (b"\x80\x02}X\x01\x00\x00\x00a" + REBUILD + b"(N" + LAUGHS + b"NNtRs.", "has a tensor of shape"),
        (b"\x80\x02}X\x01\x00\x00\x00a" + REBUILD + b"(" + STORAGE + b"J\xff\xff\xff\x7ftQK\x00))tRs.", "no numbers"),
        (b"\x80\x02}Nr\xff\xff\xff\x7fs.", ""),  # memo number 2**31 - 1
        (b"\x80\x02\x82\x01.", "has the instruction EXT1"),
        (b"\x80\x05\x97.", "has the instruction NEXT_BUFFER"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f", "expected 9223372036854775807 bytes"),
        (b"\x80\x02}K\x01b.", "gives a state to a plain value"),
        (b"\x80\x02}X\x01\x00\x00\x00a(K\x01K\x02R.", "calls what is no name"),
    ],
)  # fmt: skip
def test_hostile_pickles_take_no_time_and_no_memory(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.pth").write_bytes(row_file(content))
    started = time.monotonic()
    try:
        read_checkpoint(tmp_path / "a.pth")
    except ValueError as error:
        assert words in str(error)  # noqa: PT017
    assert time.monotonic() - started < 2


def test_a_tensor_is_no_larger_than_its_file(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "spread.pth")
    with pytest.raises(ValueError, match=r"has a tensor of shape \(1099511627776,\), larger than the file"):
        read_checkpoint(tmp_path / "spread.pth")
    torch.save({"w": torch.ones(1000)}, tmp_path / "whole.pth")
    with zipfile.ZipFile(tmp_path / "whole.pth") as archive, zipfile.ZipFile(tmp_path / "packed.pth", "w") as packed:
        for info in archive.infolist():
            packed.writestr(info.filename, archive.read(info), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="its members are compressed"):
        read_checkpoint(tmp_path / "packed.pth")


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
