"""Tables that pandas pickled: read as data, whatever is in them, and never run."""

import gzip
import json
import os
import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest

from data.convert.pandaset import pandas_pickle
from data.convert.pandaset.pandas_pickle import read_table
from data.storage.damage import DamagedError
from tests.helpers.layouts.pandas_pickles import pickled_frame
from tests.helpers.layouts.pandaset import write_table

STORED = Path(__file__).parent / "pandas_pickles"
TABLES = json.loads((STORED / "tables.json").read_text())
VERSIONS = ("0.25.3", "1.0.5", "1.2.5", "1.5.3", "2.2.3", "3.0.0")


def same(found: dict[str, np.ndarray], expected: dict[str, list]) -> None:
    assert set(found) == set(expected)
    for name, values in expected.items():
        cells = found[name].tolist()
        if found[name].dtype == object:  # absent text is None, or NaN since pandas 3
            cells = [None if cell != cell else cell for cell in cells]
        assert cells == values, name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("table", list(TABLES))
def test_tables_of_real_pandas(table, version):
    same(read_table(STORED / f"{table}-{version}.pkl.gz"), TABLES[table])


@pytest.mark.parametrize("table", list(TABLES))
def test_the_generator_writes_such_tables(table, tmp_path):
    write_table(tmp_path / "a.pkl.gz", TABLES[table])
    same(read_table(tmp_path / "a.pkl.gz"), TABLES[table])


def stored(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "a.pkl.gz"
    path.write_bytes(gzip.compress(data))
    return path


def refused(tmp_path: Path, data: bytes, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(DamagedError, match=message) as caught:
        read_table(stored(tmp_path, data))
    assert caught.value.reason == "array-broken"
    assert time.monotonic() - started < 2


class Exploit:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_no_code_is_run(tmp_path, protocol):
    target = tmp_path / "executed"
    data = pickle.dumps({"x": Exploit(target)}, protocol=protocol)
    refused(tmp_path, data, "refers to '(posix|nt).mkdir', which no table needs")
    assert not target.exists()
    pickle.loads(data)
    assert target.exists(), "the pickle is a working one"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x04cbuiltins\neval\n.", "refers to 'builtins.eval'"),
        (b"\x80\x04cnumpy\ndtype\n.", "holds numpy.dtype, expected a pandas.DataFrame"),
        (b"\x80\x04N.", "holds NoneType"),
        (b"\x80\x04(cos\nsystem\nX\x02\x00\x00\x00lso.", "refers to 'os.system'"),
        (b"\x80\x04(X\x02\x00\x00\x00lsios\nsystem\n.", "instruction INST"),
        (b"\x80\x02\x82\x01.", "instruction EXT1"),
        (b"\x80\x04X\x01\x00\x00\x00aQ.", "instruction BINPERSID"),
        (b"\x80\x04\x8b\x08\x00\x00\x00" + b"\xff" * 8 + b".", "instruction LONG4"),
        (b"", "no table that pandas pickled"),
        (b"\x80\x04K\x01", "no table that pandas pickled"),
        (b"\x80\x04.", "no table that pandas pickled"),
        (b"\x80\x04\x8e" + b"\xff" * 8, "no table that pandas pickled"),  # 2**64 - 1 bytes follow
        (b"\x80\x04Nr\xff\xff\xff\x7fj\xff\xff\xff\x7f.", "holds NoneType"),  # memo number 2**31 - 1
        (b"\x80\x04}N0.", "instruction POP"),
        (b"\x80\x04](N" + b"2" * 1000 + b"e.", "instruction DUP"),
        # A tuple of itself twice, 60 levels deep, as a key: hashing it would take 2**60 steps.
        (b"\x80\x04)\x94" + b"".join(b"h%ch%c\x86\x94" % (i, i) for i in range(60)) + b"}h<Ns.", "key of type tuple"),
    ],
)  # fmt: skip
def test_hostile_pickles_are_refused(tmp_path, data, message):
    refused(tmp_path, data, message)


def frame_bytes(**columns) -> bytes:
    return pickled_frame({"x": np.arange(4.0), "d": np.arange(4), "label": list("abcd"), **columns})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"K\x02K\x04\x86", b"K\x02K\x05\x86", "shape"),
        (b"\x8c\x02f8\x94", b"\x8c\x02O8\x94", "neither text nor numbers"),
        (b"\x8c\x02f8\x94", b"\x8c\x02f9\x94", "an array of type <'f9'"),
        (b"\x8c\x02f8\x94", b"\x8c\x02V8\x94", "an array of type <'V8'"),
        (b"0.14.1", b"0.14.2", "no table that pandas pickled: KeyError"),
    ],
)
def test_parts_that_disagree_are_refused(tmp_path, old, new, message):
    data = frame_bytes(y=np.arange(4.0))
    assert old in data
    refused(tmp_path, data.replace(old, new), message)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(pandas_pickle, "MAX_TABLE_BYTES", 1 << 20)
    bomb = gzip.compress(b"\x80\x04\x8e" + (1 << 30).to_bytes(8, "little") + b"\0" * (1 << 24))
    path = tmp_path / "bomb.pkl.gz"
    path.write_bytes(bomb)
    assert len(bomb) < 20_000
    with pytest.raises(DamagedError, match="more than 1048576 bytes decompressed"):
        read_table(path)
    monkeypatch.setattr(pandas_pickle, "_MAX_INSTRUCTIONS", 1000)
    refused(tmp_path, b"\x80\x04](" + b"N" * 2000 + b"e.", "more than 1000 instructions")
    many = {f"c{number}": np.arange(2.0) for number in range(1200)}
    monkeypatch.setattr(pandas_pickle, "_MAX_INSTRUCTIONS", 100_000)
    refused(tmp_path, pickled_frame(many), "has 1200 columns in 1 blocks, at most 1000")


def test_damaged_files_are_named(tmp_path):
    path = stored(tmp_path, frame_bytes())
    whole = path.read_bytes()
    for damaged, message in ((whole[:-20], "cut short"), (whole[:-5] + b"\0" * 5, "incorrect"), (b"text", "incorrect")):
        path.write_bytes(damaged)
        with pytest.raises(DamagedError, match=message):
            read_table(path)
    with pytest.raises(DamagedError, match="No such file") as caught:
        read_table(tmp_path / "nothing.pkl.gz")
    assert caught.value.reason == "member-missing"


@pytest.mark.parametrize("name", ["sweep-0.25.3", "cuboids-1.0.5", "cuboids-2.2.3", "cuboids-3.0.0"])
def test_random_damage_is_named_or_harmless(tmp_path, name):
    """A flipped byte either is noticed or changes a value; nothing else is raised, nothing takes long."""
    data = gzip.decompress((STORED / f"{name}.pkl.gz").read_bytes())
    table = TABLES[name.split("-")[0]]
    rng = random.Random(0)
    path = tmp_path / "a.pkl.gz"
    reasons, num_read = [], 0
    started = time.monotonic()
    for _ in range(100):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(gzip.compress(bytes(changed), compresslevel=0))
        try:
            found = read_table(path)
        except DamagedError as error:
            reasons.append(error.reason)
        else:
            assert all(column.ndim == 1 and column.size < 100 for column in found.values())
            assert len(found) == len(table)
            num_read += 1
    assert set(reasons) == {"array-broken"}
    assert min(len(reasons), num_read) > 5
    assert time.monotonic() - started < 20
