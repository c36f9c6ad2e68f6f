"""`tandem prepare` from the command line: a real tree to a set, mistakes answered with exit code 2 or 1."""

import dataclasses
import functools
import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from configs.load import ConfigError
from data.preparing.shard_task import RECORDS
from data.preparing.superpixels import SuperpixelConfig
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.superpixel_record import SuperpixelRecord
from launchers.cli import guarded
from launchers.evaluation.measure import shown_progress
from launchers.prepare import main, without_pairs
from launchers.verify import progress
from tests.data.convert.test_kitti import write_object, write_raw
from tests.helpers.fuzz_targets import SOURCES

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted((CONFIGS / "prepare").glob("*.yaml"))


def test_kitti_raw_end_to_end(tmp_path, capsys):
    source, out = write_raw(tmp_path / "raw", drives=2), tmp_path / "shards"
    command = ["kitti-raw", str(source), str(out), "--workers", "1", "--samples-per-shard", "2"]
    command += ["superpixels.num_segments=12", "val_logs=[2011_09_26_drive_0001_sync]"]
    assert main(command) == 0
    manifest = load_manifest(str(out))
    assert len(manifest) == 6
    assert (len(manifest.indices("train")), len(manifest.indices("val"))) == (3, 3)
    sample = SampleReader(manifest).read(0)
    assert sample.cameras[0].superpixels.max() < 12
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 train, 3 val, in 2 logs" in shown
    assert "pairs per sample" in shown
    assert "no image_03" in shown
    # Again: nothing to do; with another setting: refused.
    assert main(command) == 0
    assert "4 of 4 shards" in " ".join(capsys.readouterr().out.split())
    assert guarded(main, [*command[:-1], "codec.jpeg_quality=50"]) == 1
    message = capsys.readouterr().err
    assert "was begun with" in message
    assert "Traceback" not in message


@pytest.mark.parametrize("verb", ["prepare", "evaluate"])
def test_a_mistake_is_told_without_an_empty_bar(verb):
    """A bar is drawn from its first report on."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=80)
    opened = functools.partial(progress, console, "frames", "a -> b")
    bar, report, words = {
        "prepare": (opened, (1, 2, {}), "1/2 frames"),
        "evaluate": (functools.partial(shown_progress, console), (0.5, "knn"), "evaluated"),
    }[verb]
    with pytest.raises(ConfigError), bar():
        raise ConfigError("no such folder")
    assert console.file.getvalue() == ""
    with bar() as show:
        show(*report)
    assert words in console.file.getvalue()


def test_nothing_but_the_error_where_there_is_no_source(tmp_path, capsys):
    assert guarded(main, ["kitti-raw", str(tmp_path / "nothing"), str(tmp_path / "out"), "--workers", "1"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert "nothing" in told.err


def test_the_summary_counts_samples_without_pairs(tmp_path):
    source, out = write_raw(tmp_path / "raw", drives=2), tmp_path / "shards"
    assert main(["kitti-raw", str(source), str(out), "--workers", "1", "--no-superpixels"]) == 0
    manifest = load_manifest(str(out))
    pairs = manifest.num_pairs.copy()
    pairs[manifest.sample_log == 1] = 0
    few = without_pairs(dataclasses.replace(manifest, num_pairs=pairs))
    assert few == "3 of 6 samples have no point in an image; all of 2011_09_26_drive_0001_sync"


def test_a_folder_in_which_nothing_was_written_takes_other_settings(tmp_path, capsys):
    """As the message advises that refuses the first try."""
    source, out = write_raw(tmp_path / "raw", drives=2), tmp_path / "shards"
    (source / "2011_09_26" / "2011_09_26_drive_0001_sync" / "image_02").rename(tmp_path / "images")
    command = ["kitti-raw", str(source), str(out), "--workers", "1", "--no-superpixels"]
    assert guarded(main, command) == 1
    assert "cameras=[image_02], or [none] for sweeps only" in " ".join(capsys.readouterr().err.split())
    assert main([*command, "cameras=[none]"]) == 0
    assert load_manifest(str(out)).camera_names == ()


def test_settings_may_stand_before_and_after_flags(tmp_path):
    source = write_object(tmp_path / "object")
    out = str(tmp_path / "shards")
    arguments = ["kitti-object", str(source), out, "val_every=2", "--no-superpixels", "codec.jpeg_quality=80"]
    assert main([*arguments, "--limit", "4", "--workers", "1"]) == 0
    manifest = load_manifest(out)
    assert len(manifest) == 4
    assert len(manifest.indices("val")) == 2
    assert SampleReader(manifest).read(0).cameras[0].superpixels is None
    settings = json.loads((Path(out) / RECORDS / "settings.json").read_text())
    assert settings["codec"]["jpeg_quality"] == 80
    assert settings["set"]["source"] == str(source.resolve())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_file_of_configs_prepares_its_set(tmp_path, capsys, path):
    assert path.read_text().startswith("# ")
    assert f"tandem prepare configs/prepare/{path.name} " in path.read_text(), "its header has no command"
    assert main([str(path), "SRC" if path.stem != "street" else "-", "OUT", "--show-config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    name = resolved["set"]["name"]
    source, out = tmp_path / "raw", str(tmp_path / "shards")
    command = [str(path), str(source), out, "--workers", "1", "--limit", "2", "--max-skip-share", "1"]
    if name == "synthetic":
        command[1] = "-"
        command += ["num_logs=1", "set.frames_per_log=1", "cameras.image_size=[32,64]"]
    else:
        source.mkdir()
        SOURCES["scannet meshes" if resolved["set"].get("meshes") else name](source)
    assert main(command) == 0
    manifest = load_manifest(out)
    assert manifest.set_name == name
    wanted = resolved["superpixels"]
    assert manifest.superpixels == (wanted and SuperpixelConfig(**wanted).record())


def test_the_papers_runs_expect_what_their_files_prepare():
    for run, prepared in (("slidr_nuscenes", "nuscenes_slidr"), ("slidr_voxelnet_nuscenes", "nuscenes_slidr_voxelnet")):
        expected = yaml.safe_load((CONFIGS / "pretrain" / f"{run}.yaml").read_text())["data"]["expected_superpixels"]
        made = yaml.safe_load((CONFIGS / "prepare" / f"{prepared}.yaml").read_text())["superpixels"]
        assert SuperpixelConfig(**made).record().differences(SuperpixelRecord(**expected)) == []


def test_flags_and_settings_are_stronger_than_the_file(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text("set: {name: kitti-object, val_every: 3}\nlimit: 7\nsuperpixels: {num_segments: 30}\n")

    def resolved(*argv: str):
        assert main([str(path), "SRC", "OUT", "--show-config", *argv]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    plain = resolved()
    assert (plain["limit"], plain["set"]["val_every"], plain["superpixels"]["num_segments"]) == (7, 3, 30)
    assert plain["set"]["source"] == str(Path("SRC").absolute())
    changed = resolved("--limit", "5", "val_every=2", "superpixels.compactness=6")
    assert (changed["limit"], changed["set"]["val_every"]) == (5, 2)
    assert (changed["superpixels"]["num_segments"], changed["superpixels"]["compactness"]) == (30, 6)
    assert resolved("set.val_every=9", "--no-superpixels")["superpixels"] is None
    path.write_text("set: {name: kitti-object}\nsuperpixels: null\n")
    assert resolved("--superpixels")["superpixels"]["num_segments"] == 150


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("set: {name: kitti-objects}", "set.name: got 'kitti-objects', expected one of"),
        ("set: {name: kitti-object, val_evry: 3}", "set.val_evry: unknown name; did you mean 'val_every'"),
        ("set: {name: kitti-object}\nsuperpixel: null", "superpixel: unknown name; did you mean 'superpixels'"),
        ("superpixels: null", "set.name: no value given, expected one of"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, capsys, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert guarded(main, [str(path), str(tmp_path), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["val_evry=3"], "val_evry: unknown name; did you mean 'val_every'"),
        (["val_every=many"], "val_every: got 'many', expected a whole number"),
        (["superpixels.num_segments=0"], "superpixels.num_segments: got 0, expected 1 to 65536"),
        (["superpixels.segments=9"], "superpixels.segments: unknown name"),
        (["--samples-per-shard", "0"], "samples_per_shard: got 0, expected at least 1"),
        (["--workers", "0"], "--workers: got 0, expected at least 1"),
        (["--no-superpixels", "superpixels.num_segments=9"], "switches them off"),
    ],
)
def test_mistakes_name_the_place_and_write_nothing(tmp_path, capsys, wrong, message):
    source = write_object(tmp_path / "object", frames=(0,))
    assert guarded(main, ["kitti-object", str(source), str(tmp_path / "out"), *wrong]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_source_is_explained(tmp_path, capsys):
    assert guarded(main, ["kitti-raw", str(tmp_path), str(tmp_path / "out"), "--workers", "1"]) == 1
    assert "is no KITTI raw folder: looked for" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["no-such-set", "a", "b"], ["kitti-raw", "a"], ["kitti-raw", "a", "b", "--wat"]]
)
def test_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["synthetic", "kitti-raw", "kitti-object"])
def test_help_lists_the_settings(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("--workers", "--no-superpixels", "--limit", "superpixels.<name>", "codec.jpeg_quality"):
        assert word in text


def test_config_error_is_what_the_command_line_catches():
    with pytest.raises(ConfigError):
        main(["kitti-object", "a", "b", "nonsense=1"])


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["kiti-raw", "a", "b"], "no data set 'kiti-raw'; did you mean 'kitti-raw'?"),
        (["---", "a", "b"], "---: options come behind the data set"),
        (["--workers", "2", "kitti-raw", "a", "b"], "--workers: options come behind the data set"),
        (["zzz"], "known: "),
    ],
)
def test_the_first_word_is_a_data_set(argv, told, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    assert told in capsys.readouterr().err
