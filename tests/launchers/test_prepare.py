"""`tandem prepare` from the command line: a real tree to a set, mistakes answered with exit code 2 or 1."""

import json
from pathlib import Path

import pytest

from configs.load import ConfigError
from data.preparing.unit import RECORDS
from data.storage.shards import SampleReader, load_manifest
from launchers.cli import guarded
from launchers.prepare import main
from tests.data.convert.test_kitti import write_object, write_raw


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
    assert "pairs a sample" in shown
    assert "no image_03" in shown
    # Again: nothing to do; with another setting: refused.
    assert main(command) == 0
    assert "4 of 4 shards" in " ".join(capsys.readouterr().out.split())
    assert guarded(main, [*command[:-1], "codec.jpeg_quality=50"]) == 1
    message = capsys.readouterr().err
    assert "was begun with" in message
    assert "Traceback" not in message


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["val_evry=3"], "val_evry: unknown name; did you mean 'val_every'"),
        (["val_every=many"], "val_every: got 'many', expected a whole number"),
        (["superpixels.num_segments=0"], "num_segments is 0, expected 1 to 65536"),
        (["superpixels.segments=9"], "superpixels.segments: unknown name"),
        (["--samples-per-shard", "0"], "samples_per_shard is 0, expected at least 1"),
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
