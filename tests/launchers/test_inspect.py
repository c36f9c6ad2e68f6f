"""`tandem inspect`: right numbers, named damage, a page that needs nothing else, names that do no harm."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.sample import IGNORE_LABEL
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from engine.errors import CheckpointError
from launchers.drawing.page import TextTable, page
from launchers.drawing.set_tables import human_bytes, look, sample_table, set_tables
from launchers.inspect import find_sample, main
from launchers.reporting.run_tables import run_tables
from launchers.runs.files import is_run
from launchers.training.restore import find_checkpoint_folder, load_run_config
from tests.helpers.damaged_set import write_damaged_set
from tests.helpers.run_folder import STEP, write_toy_run
from tests.helpers.samples import CLASS_NAMES, make_sample, write_toy_set

HOSTILE = 'it\'s a "<b>set</b>" & more; $(touch x) [red] ünï'


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("sets") / HOSTILE, num_logs=3, frames_per_log=2)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, shards: str) -> Path:
    folder = tmp_path_factory.mktemp("runs") / HOSTILE
    write_toy_run(folder, shards)
    return folder


class Links(HTMLParser):
    """Everything on a page that could make a browser fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str, str]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = {"src", "href", "srcset", "data", "action", "poster", "style"}
        self.found += [(tag, name, value or "") for name, value in attrs if name in names or name.startswith("on")]


def links(content: str) -> Links:
    parser = Links()
    parser.feed(content)
    return parser


def assert_self_contained(content: str) -> list[str]:
    parser = links(content)
    assert all(tag == "img" and value.startswith("data:image/jpeg;base64,") for tag, _, value in parser.found)
    assert not {"script", "link", "iframe", "object", "base"} & set(parser.tags)
    style = re.search(r"<style>(.*?)</style>", content, re.S)
    assert style
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    return [value for _, _, value in parser.found]


# ---- sets


def test_set_summary_counts_what_is_in_the_shards(shards: str) -> None:
    manifest = load_manifest(shards)
    reader = SampleReader(manifest)
    tables = {table.title.split(" by ")[0]: table for table in set_tables(manifest, look(manifest, reader))}
    contents = dict(tables["contents"].rows)
    assert contents["samples"] == "6"
    assert contents["categories of boxes"] == "none, or not recorded"
    assert contents["points per sample"] == "400 (from 400 to 400)"
    assert contents["pairs per sample"].startswith(f"{manifest.num_pairs.mean():,.0f} ")
    assert tables["splits"].rows == (("train", "2", "4", "4"), ("val", "1", "2", "2"))
    labels = np.concatenate([reader.read(i).labels for i in range(6)])  # type: ignore[misc]
    for class_id, name in enumerate(CLASS_NAMES):
        assert (str(class_id), name, f"{(labels == class_id).mean():.2%}") in tables["classes"].rows
    unlabelled = f"{(labels == IGNORE_LABEL).mean():.2%}"
    assert (str(IGNORE_LABEL), "(unlabelled)", unlabelled) in tables["classes"].rows


def test_a_sample_in_numbers_has_what_only_some_sets_have() -> None:
    sample = make_sample(np.random.default_rng(0))
    plain = dict(sample_table(sample, 3).rows)
    assert plain["boxes"] == "2"
    assert "times" not in plain
    assert sample.boxes is not None
    boxes = dataclasses.replace(sample.boxes, categories=np.zeros(2, np.int64), truncations=np.array([0.5, np.nan]))
    first = dataclasses.replace(sample.cameras[0], ignored_px=np.array([[0.0, 0, 5, 5]]))
    times = np.linspace(0, 0.45, len(sample.points_lidar), dtype=np.float32)
    full = dataclasses.replace(sample, boxes=boxes, cameras=(first,), times_s=times, elongations=times * 2)
    rows = dict(sample_table(full, 3).rows)
    assert rows["boxes"] == "2, with categories, truncations"
    assert rows["times"] == "0.000 to 0.450 s before the sweep"
    assert rows["elongation"] == "0.000 to 0.900"
    assert rows["camera front"].endswith(", 1 ignored rectangles")


def test_numbers_alone_write_no_file(shards: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = sorted(Path(shards).iterdir())
    assert main([shards]) == 0
    text = capsys.readouterr().out
    assert "toy: 6 samples" in text
    assert HOSTILE in text
    assert sorted(Path(shards).iterdir()) == before


def test_pictures_and_page_of_a_set(shards: str, tmp_path: Path) -> None:
    out = tmp_path / HOSTILE / "deep"
    assert main([shards, "--out", str(out), "--num", "2"]) == 0
    names = sorted(path.name for path in out.iterdir())
    parts = ("cameras", "depth", "sweep")
    keys = ("log-000_000000", "log-002_000001")
    assert names == ["inspect.html", *(f"{key}.{part}.png" for key in keys for part in parts)]
    for path in out.glob("*.png"):
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        assert image.std() > 5
    content = (out / "inspect.html").read_text(encoding="utf-8")
    images = assert_self_contained(content)
    assert len(images) == 6
    assert "<b>set</b>" not in content
    assert "&lt;b&gt;set&lt;/b&gt;" in content
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(images[0].split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape[1] <= 1500
    assert not list(tmp_path.glob("x"))


def test_a_sample_by_key_or_index(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = load_manifest(shards)
    assert find_sample(manifest, "log-001_000001") == find_sample(manifest, "3") == 3
    assert main([shards, "--sample", "log-001_000001", "--sample", "0"]) == 0
    text = capsys.readouterr().out
    assert "sample log-001_000001 (row 3)" in text
    assert "sample log-000_000000 (row 0)" in text
    assert "96 x 48 px, f 48.0 px, 18 superpixels, +10.0 ms to the sweep" in text


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("log-001_00000", "did you mean log-001_000000"), ("6", "expected 0 to 5"), ("../../etc/passwd", "no such key")],
)
def test_an_unknown_sample_is_answered_with_code_2(
    shards: str, wanted: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([shards, "--sample", wanted])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_fewer_samples_than_none_are_refused(shards: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([shards, "--num", "-3"])
    assert "--num: got '-3', expected a whole number of 0 or more" in capsys.readouterr().err


def test_damage_is_named_and_changes_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_toy_set(tmp_path / "set", num_logs=2, frames_per_log=2)
    assert main([shards, "--check"]) == 0
    assert "every shard is intact" in capsys.readouterr().out
    tar = tmp_path / "set" / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[600] ^= 0xFF
    tar.write_bytes(content)
    assert main([shards, "--check", "--out", str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    assert re.search(r"shard-000000.tar +damaged", text)
    assert "samples that training would skip" in text
    assert "log-000_000000" in text
    assert "in 3 of 4 samples by" not in text
    assert (tmp_path / "out" / "log-001_000001.sweep.png").is_file()


def test_what_training_would_skip_is_seen_without_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, where = write_damaged_set(tmp_path / "set")
    assert main([root]) == 1
    text = capsys.readouterr().out
    for reason, (key, _) in where.items():
        assert (re.search(rf"{key} +{reason} ", text) is not None) == (reason != "zero-pairs"), reason


def test_a_set_without_labels_or_superpixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = write_toy_set(tmp_path / "set", num_logs=1, frames_per_log=1, labels=False, superpixels=False, depth=False)
    assert main([shards, "--out", str(tmp_path / "out")]) == 0
    assert "classes" not in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        "log-000_000000.cameras.png",
        "log-000_000000.sweep.png",
    }


def test_what_is_neither_set_nor_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="is neither a prepared set"):
        main([str(tmp_path)])


# ---- page


def test_the_page_escapes_everything() -> None:
    evil = '"><script>alert(1)</script><img src=http://example.org/x onerror=alert(1)>'
    table = TextTable(title=evil, header=(evil, "n"), rows=((evil, "1"),), numeric=(1,))
    content = page(evil, evil, [table], {evil: np.zeros((4, 4, 3), np.uint8)})
    parser = links(content)
    assert [(tag, name) for tag, name, _ in parser.found] == [("img", "src")]
    assert "script" not in parser.tags


def test_tables_are_aligned_in_text() -> None:
    table = TextTable(title="t", header=("name", "n"), rows=(("a", "1"), ("long name", "1,000")), numeric=(1,))
    assert table.text().splitlines() == ["t", "  name           n", "  a              1", "  long name  1,000"]
    assert TextTable(title="empty").text() == "empty"


def test_sizes_have_units() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1536, 5 * 2**30, 3 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
        "3.0 TiB",
    ]


# ---- runs


def test_run_summary_has_metrics_checkpoints_and_config(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir)]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"step_{STEP:08d} +[\d.]+ MiB +step {STEP} of 50, 1 updates skipped", text)
    assert re.search(r"train/loss +4.9 +3.8 +falls", text)
    assert re.search(rf"state +\w+, {STEP} of \d+ updates", text)
    assert re.search(r"method.backbone.preset +res16unet_tiny", text)
    assert re.search(r"method.backbone +intensity from 0 to 1, of the first point of a voxel", text)


def test_run_pictures_come_from_its_weights_and_shards(run_dir: Path, tmp_path: Path) -> None:
    assert main([str(run_dir), "--out", str(tmp_path), "--num", "1"]) == 0
    names = {path.name for path in tmp_path.glob("*.png")}
    kinds = ("superpixels", "lidar_depth", "similarity_points", "similarity_pixels", "point_features", "pixel_features")
    assert names == {f"log-002_000000.{kind}.png" for kind in kinds}
    assert len(assert_self_contained((tmp_path / "inspect.html").read_text(encoding="utf-8"))) == len(kinds)


def test_a_run_whose_shards_are_gone_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_toy_run(tmp_path / "run", str(tmp_path / "gone"))
    assert main([str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 0
    assert f"the run's shards are not at {tmp_path / 'gone'}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(tmp_path / "run"), "--check"])


def test_a_run_that_has_just_begun_or_was_cut_short(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert is_run(tmp_path)
    titles = {table.title: table.rows for table in run_tables(tmp_path)}
    assert titles["checkpoints"] == (("none yet",),)
    assert titles["config"] == (("seed", "1"),)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/loss": 2.0}) + '\n{"step": 2, "tra')
    titles = {table.title: table.rows for table in run_tables(tmp_path)}
    assert titles["metrics, first and last line"] == (
        ("train/loss", "2", "2", "falls; says nothing of other temperatures, batches or methods"),
    )
    (tmp_path / "metrics.jsonl").write_text('nonsense\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"metrics.jsonl, line 1"):
        run_tables(tmp_path)
    with pytest.raises(CheckpointError, match="expected a run's folder"):
        find_checkpoint_folder(tmp_path)


def test_a_damaged_checkpoint_is_told_and_passed_over(
    tmp_path: Path, shards: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toy_run(tmp_path, shards, step=5)
    write_toy_run(tmp_path, shards, step=9)
    weights = tmp_path / "checkpoints" / "step_00000009" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert main([str(tmp_path)]) == 0
    assert re.search(r"step_00000009 .*damaged: weights.safetensors has", capsys.readouterr().out)
    assert find_checkpoint_folder(tmp_path).name == "step_00000005"
    with pytest.raises(CheckpointError, match="is damaged"):
        find_checkpoint_folder(weights.parent)


@pytest.mark.slow
def test_a_config_of_another_version_is_named(tmp_path: Path, shards: str) -> None:
    write_toy_run(tmp_path, shards)
    folder = find_checkpoint_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["method"]["warp_factor"] = 9
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"method\.warp_factor: unknown name"):
        load_run_config(folder)
