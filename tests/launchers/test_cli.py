"""What a mistake at the command line is answered with: one line that names it, exit code 2, no traceback."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from common.files import replacing
from launchers.cli import VERBS, guarded
from launchers.cli import main as tandem
from tests.helpers.pretrain_run import CONFIGS, STREET, arguments
from tests.helpers.warm import Child

MISTAKES = [
    (["optim.lrr=0.1"], ["optim.lrr", "unknown name", "did you mean 'lr'", "0.1"]),
    (["optm.lr=0.1"], ["optm", "unknown name", "did you mean 'optim'"]),
    (["method.backbone.presett=x"], ["method.backbone.presett", "did you mean 'preset'"]),
    (["optim.lr=fast"], ["optim.lr", "'fast'", "a number"]),
    (["optim.name=adam"], ["optim.name", "'adam'", "'sgd', 'adamw'"]),
    (["schedule.steps=2.5"], ["schedule.steps", "2.5", "whole number"]),
    (["data.voxel.size=[0.1,0.1]"], ["data.voxel.size", "0.1, 0.1", "list of 3"]),
    (["optim.lr=-1"], ["optim.lr: got -1.0, expected above 0"]),
    (["data.micro_batch_size=0"], ["data.micro_batch_size: got 0, expected at least 1"]),
    (["engine.zero_stage=4"], ["engine.zero_stage: got 4, expected one of 0, 1, 2, 3"]),
    (["method.teacher.weights=moco_v2:x"], ["method.teacher", "weights", "random, imagenet"]),
    (["method.name=sldir"], ["method.name", "'sldir'", "did you mean 'slidr'"]),
    (["data.voxel.features=xyz_intensity"], ["method.backbone.in_channels", "got 1", "expected 4"]),
    (["batch_size=2"], ["batch_size: unknown name; did you mean data.micro_batch_size or optim.reference_batch_size?"]),
    (["temprature=0.1"], ["temprature: unknown name; did you mean method.temperature?"]),
    (["optim.name=adamv"], ["optim.name: got 'adamv', expected one of 'sgd', 'adamw'; did you mean 'adamw'?"]),
    (["evaluate.select_by=linear_prob"], ["expected one of", "did you mean 'linear_probe'?"]),
    (["lr=0.1"], ["lr: unknown name; did you mean optim.lr?"]),
    (["optim.temperature=0.1"], ["optim.temperature: unknown name; did you mean method.temperature?"]),
    (["data.shards=???"], ["data.shards", "no value given"]),
    (["optim.lr"], ["'optim.lr'", "section.field=value"]),
    (["optim=3"], ["optim", "3", "a section"]),
    (["optim.lr={a: [}"], ["optim.lr", "not valid YAML"]),
    (["optim.lr=" + 5000 * "1"], ["optim.lr", "not valid YAML", "4300 digits"]),
]


def told(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


@pytest.mark.parametrize(("overrides", "words"), MISTAKES, ids=[overrides[0][:60] for overrides, _ in MISTAKES])
def test_a_mistake_is_one_line_and_code_2(
    overrides: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tandem(["pretrain", str(STREET), *overrides]) == 2
    message = told(capsys)
    for word in words:
        assert word in message, message


def test_a_missing_or_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["pretrain", str(STREET.with_name("slidr_stret.yaml"))]) == 2
    message = told(capsys)
    assert "no such config file" in message
    assert "did you mean" in message
    assert "slidr_street.yaml" in message
    for content, word in (
        ("a: [1", "not readable as YAML"),
        ("seed: " + 5000 * "1", "not readable as YAML"),
        ("- 1\n- 2\n", "expected a mapping"),
    ):
        broken = tmp_path / "broken.yaml"
        broken.write_text(content)
        assert tandem(["pretrain", str(broken)]) == 2
        captured = told(capsys)
        assert word in captured
        assert str(broken) in captured


def test_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem([]) == 2
    assert tandem(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS)
    assert tandem(["pretrian"]) == 2
    assert "no verb 'pretrian'; did you mean 'pretrain'?" in capsys.readouterr().err


def made(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    return root


CROSSED = [
    (
        "pretrain semantickitti",
        "semantickitti is the config of downstream protocols, which goes to tandem evaluate RUN",
    ),
    ("pretrain {configs}/downstream/street.yaml", "is the config of downstream protocols"),
    ("plan {configs}/sweep/slidr_street.yaml --samples 9", "is the config of a sweep (it has base, grid, root)"),
    ("evaluate {run} {configs}/pretrain/slidr_street.yaml", "goes to tandem pretrain, submit or plan"),
    ("sweep {configs}/pretrain/slidr_street.yaml --local", "expected that of a sweep"),
    ("submit slidr_street --cluster {configs}/downstream/street.yaml", "expected that of a cluster"),
    ("prepare {configs}/cluster/cpu.yaml {raw} {tmp}/out", "is the config of a cluster"),
    ("evaluate {run} {run}", "{run}: is a folder, expected a YAML file or one of kitti_depth, kitti_eigen_depth"),
    ("evaluate street {run}", "the run comes first, then the protocols; did you mean tandem evaluate {run} street?"),
    ("prepare kitti-raw {set} {raw}", "did you mean tandem prepare kitti-raw {raw} {set}?"),
    ("prepare kitti-raw {tmp}/new {raw}", "did you mean tandem prepare kitti-raw {raw} {tmp}/new?"),
    ("pretrain optim.lr=0.1 slidr_street", "optim.lr=0.1: no such config file; the config comes first"),
    (
        "pretrain slidr_street {set}",
        "override '{set}': expected section.field=value, without spaces; a path belongs to",
    ),
    ("pretrain slidr", "did you mean slidr_kitti or slidr_kitti_cpu or slidr_nuscenes or slidr_street"),
    ("submit slidr_street --local cluster.node=3", "config error: cluster.node: unknown name; did you mean 'nodes'?"),
    ("submit slidr_street --local cluster.nodes", "override 'cluster.nodes': expected cluster.field=value"),
    ("reproduce street --dry-run cluster.nodes=0", "config error: cluster.nodes: got 0, expected at least 1"),
    ("submit slidr_street --local sbatch.time=3", "did you mean cluster.sbatch.time=3?"),
    ("evaluate {run} street protocols=[knnn]", "image_finetune, registration; did you mean 'knn'?"),
    (
        "prepare waymo {raw} {tmp}/out superpixel.num_segments=3",
        "superpixel: unknown name; did you mean 'superpixels'?",
    ),
    ("prepare waymo {raw} {tmp}/out laser=[top]", "set.laser: unknown name; did you mean 'lasers'?"),
    ("pretrain {run}", "did you mean {run}/config.yaml, the config of that run?"),
    ("report page.html {run}", "page.html: expected folders of runs; the page to write is given as --out page.html"),
    ("report {raw}/a", "found neither results.json nor metrics.jsonl"),
    ("evaluate {tmp}/runs street --random-only", "config.yaml"),
    ("status {tmp}/rus", "no such folder; did you mean {tmp}/runs?"),
    ("cancel {run}/checkpoints", "no runs in it; did you mean {run}?"),
]


@pytest.mark.parametrize(("line", "words"), CROSSED, ids=[line for line, _ in CROSSED])
def test_what_was_meant_is_said(line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, "raw/a/b.txt", "set/manifest.json", "runs/one/config.yaml", "runs/one/checkpoints/x")
    places = {"configs": CONFIGS.parent, "raw": tmp_path / "raw", "set": tmp_path / "set", "tmp": tmp_path}
    places |= {"run": tmp_path / "runs" / "one"}
    assert tandem(line.format(**places).split()) == 2
    assert words.format(**places) in told(capsys)
    assert not (tmp_path / "out").exists()


def test_folders_near_the_one_that_was_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(tmp_path, "sets/street/manifest.json", "runs/one/config.yaml", "runs/one/checkpoints/step_00000001/a")
    runs, one = tmp_path / "runs", tmp_path / "runs" / "one"
    for line, words in (
        (["inspect", str(tmp_path / "sets")], f"did you mean {tmp_path}/sets/street?"),
        (["evaluate", str(runs), "street"], f"did you mean {one}?"),
        (["pretrain", str(STREET), f"data.shards={tmp_path / 'sets'}", f"run_dir={tmp_path}/new"], "sets/street?"),
        (
            ["pretrain", str(STREET), f"data.shards={one}", f"run_dir={tmp_path}/new"],
            "this is a run, whose config.yaml",
        ),
    ):
        assert tandem(line) == 1
        assert words in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tandem(["export", "out.safetensors", str(one)])
    assert f"did you mean {one} out.safetensors?" in capsys.readouterr().err


def test_as_a_module_the_same_answers(tmp_path: Path) -> None:
    """Found while the run is set up, by the engine: precision and machine do not fit."""
    processes = [
        Child("launchers.pretrain", str(STREET), "optim.lrr=1"),
        Child("launchers.pretrain", *arguments(tmp_path / "run", str(tmp_path / "nothing"))),
    ]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 1], outputs
    assert outputs[0].startswith("config error: optim.lrr: unknown name; did you mean 'lr'?")
    assert outputs[0].count("\n") == 1
    assert "ShardError" in outputs[1]
    assert str(tmp_path / "nothing") in outputs[1]
    assert "Traceback" not in outputs[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("engine.precision=fp16", "engine.precision=fp16 needs a GPU"),
        ("data.augment.image.enabled=true", "augment.image.enabled"),
        ("data.split=test", "'test'"),
    ],
)
def test_mistakes_that_only_the_run_can_see(override: str, word: str, toy_set: str, tmp_path: Path) -> None:
    process = Child("launchers.pretrain", *arguments(tmp_path, toy_set, override, "schedule.steps=1"))
    output = process.communicate(timeout=120)[0]
    assert process.returncode in (1, 2), output
    assert word in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    processes = [Child(f"launchers.{verb}", "--help"), Child("launchers.cli", verb, "--help")]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    assert f"tandem {verb}" in outputs[0]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; free disk space"),
        (errno.EROFS, "Read-only file system; choose another folder"),
        (errno.EACCES, "Permission denied; repair its permissions"),
        (errno.ENOTDIR, "Not a directory; a file lies where a folder is needed"),
    ],
)
def test_an_error_of_the_file_system_is_one_line_with_the_place(
    number: int, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def verb(_: list[str]) -> int:
        with replacing(tmp_path / "report.html", durable=False) as temporary:
            temporary.write_text("half")
            raise OSError(number, os.strerror(number))  # as a write does: it names no file

    assert guarded(verb, []) == 1
    assert told(capsys).startswith(f"file error: {tmp_path / 'report.html'}: {remedy}")
    assert list(tmp_path.iterdir()) == []


def test_no_room_for_temporary_files_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    assert guarded(lambda _: len(tempfile.mkdtemp()), []) == 1
    assert told(capsys).startswith("file error: No usable temporary directory found in ['/nowhere']; free disk space")


def test_an_unexpected_error_keeps_its_traceback() -> None:
    def verb(_: list[str]) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "internal.bin")

    with pytest.raises(FileNotFoundError):
        guarded(verb, [])
