"""Points of a sweep: which runs there are, and what their folders are called."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from benchmarks import methods
from configs.load import ConfigError, load
from configs.schema import PRETRAIN_CHOICES, PretrainConfig, SlurmConfig, SweepConfig, SweepRunConfig
from launchers.cli import main as tandem
from launchers.sweep import combinations, point_name, points, yaml_value
from tests.helpers.pretrain_run import CONFIGS, STREET

SWEEPS = sorted((CONFIGS.parent / "sweep").glob("*.yaml"))
CLUSTERS = sorted((CONFIGS.parent / "cluster").glob("*.yaml"))
SAFE = re.compile(r"[A-Za-z0-9_.+-]{1,96}")

VALUES = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.booleans(), st.none(), st.text(max_size=200), st.lists(st.integers())
)
KEYS = st.lists(st.from_regex(r"[a-z]{1,4}(\.[a-z]{1,4}){0,2}", fullmatch=True), min_size=1, max_size=4, unique=True)


def sweep_of(tmp_path: Path, **fields: Any) -> SweepConfig:
    return SweepConfig(base=str(STREET), root=str(tmp_path / "sweep"), **fields)


def test_points_are_every_combination_in_the_files_order(tmp_path: Path) -> None:
    sweep = sweep_of(
        tmp_path,
        overrides=("schedule.steps=30",),
        points=(("method.temperature=0.07",), ("method.temperature=0.2", "optim.lr=0.1")),
        grid={"seed": (0, 1), "data.image_size": ((48, 96), (96, 192))},
    )
    made = points(sweep, ["data.shards=x"])
    assert [point.run_dir.name for point in made] == [
        f"temperature_{setting}-seed_{seed}-image_size_{size}"
        for setting in ("0.07", "0.2-lr_0.1")
        for seed in (0, 1)
        for size in ("48x96", "96x192")
    ]
    last = made[-1].config
    assert (last.method.temperature, last.optim.lr, last.seed) == (0.2, 0.1, 1)  # type: ignore[attr-defined]
    assert (last.data.image_size, last.data.shards, last.schedule.steps) == ((96, 192), "x", 30)
    assert made[0].config.optim.lr == load_street_lr()


def load_street_lr() -> float:
    from launchers.training.train import load_run

    return load_run(str(STREET)).optim.lr


def test_a_points_name_does_not_depend_on_the_other_points(tmp_path: Path) -> None:
    small = points(sweep_of(tmp_path, grid={"seed": (0,), "optim.lr": (0.1,)}))
    large = points(sweep_of(tmp_path, grid={"seed": (2, 1, 0), "optim.lr": (0.2, 0.1)}))
    assert {point.run_dir for point in small} < {point.run_dir for point in large}


@pytest.mark.parametrize(
    ("chosen", "name"),
    [
        ({"seed": 1}, "seed_1"),
        ({"method.name": "slidr", "method.backbone.name": "spvcnn"}, "method_slidr-backbone_spvcnn"),
        ({"data.voxel.size": [0.1, 0.1, 0.2], "optim.lr": 1e-05}, "size_0.1x0.1x0.2-lr_1.0e-05"),
        ({"a.size": 1, "b.size": 2}, "a.size_1-b.size_2"),
        ({"size": 1, "b.size": 2}, "size_1-b.size_2"),
        ({"data.split": None, "x": True}, "split_null-x_true"),
    ],
)
def test_names_are_short_and_readable(chosen: dict[str, Any], name: str) -> None:
    assert point_name(chosen) == name


@pytest.mark.parametrize(
    "value", ["a/../b", "a b", "$(rm -rf /)", "ü☃", "a'\"b", "%j", "..", "x" * 300, "line\nbreak", "-rf", "a\\b", ""]
)
def test_hostile_values_become_safe_names(value: str) -> None:
    name = point_name({"method.teacher.weights": value})
    assert SAFE.fullmatch(name)
    assert name not in {".", ".."}
    assert not name.startswith(("-", "."))
    assert name != point_name({"method.teacher.weights": value + "x"})


@pytest.mark.parametrize(
    ("one", "two"),
    [(0, [0]), ([0, 1], "0x1"), ([0.5, 2], "0.5x2"), ([[0, 1], 2], [0, [1, 2]]), ([], ""), ([True, 1], "truex1")],
)
def test_a_list_and_what_reads_like_it_have_different_names(one: Any, two: Any) -> None:
    assert point_name({"a": one}) != point_name({"a": two})


@given(keys=KEYS, one=st.lists(VALUES, min_size=4, max_size=4), two=st.lists(VALUES, min_size=4, max_size=4))
def test_different_points_have_different_safe_names(keys: list[str], one: list[Any], two: list[Any]) -> None:
    first, second = dict(zip(keys, one, strict=False)), dict(zip(keys, two, strict=False))
    names = point_name(first), point_name(second)
    assert all(SAFE.fullmatch(name) for name in names)
    assert (names[0] == names[1]) == (yaml_value(first) == yaml_value(second))


@given(VALUES)
@example("\n")
@example(["a\r\nb", "\u2028"])
def test_a_value_survives_the_way_through_an_override(value: Any) -> None:
    import yaml

    assert yaml.safe_load(yaml_value(value)) == value
    assert "\n" not in yaml_value(value)


def test_a_mistake_names_its_point(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"point lr_1-seed_x: seed: got 'x', expected a whole number"):
        points(sweep_of(tmp_path, grid={"optim.lr": (1,), "seed": ("x",)}))
    with pytest.raises(ConfigError, match=r"point temprature_1: .*did you mean 'temperature'"):
        points(sweep_of(tmp_path, grid={"method.temprature": (1,)}))
    with pytest.raises(ConfigError, match="'seed', expected section"):
        list(combinations(sweep_of(tmp_path, points=(("seed",),))))


def test_the_same_point_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two points of the sweep are the same run, seed_1"):
        points(sweep_of(tmp_path, grid={"seed": (1, 1)}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "nothing to sweep over"),
        ({"grid": {"seed": ()}}, r"grid.seed: got \(\), expected a list of at least one value"),
        ({"grid": {"seed": 3}}, "grid.seed: got 3, expected a list"),
        ({"grid": {"seed": (1,)}, "points": (("seed=2",),)}, "seed is in points and in grid"),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep_of(tmp_path, **fields)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_config_makes_its_points(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIGS.parents[1])
    sweep = load(SweepConfig, path)
    made = points(sweep, ["data.shards=a", *([] if sweep.runs else ["method.teacher.weights=random"])])
    assert len(made) == len({point.run_dir for point in made}) >= 3


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_every_cluster_config_loads(path: Path) -> None:
    cluster = load(SlurmConfig, path)
    assert cluster.name == path.stem
    assert cluster.evaluate.tasks == 1


def test_verb_tells_of_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tandem(["sweep", str(tmp_path / "no.yaml")]) == 2
    assert "no such config file" in capsys.readouterr().err
    (tmp_path / "s.yaml").write_text(f"base: {STREET}\nroot: {tmp_path}\ngrid: {{seed: [0]}}\n")
    assert tandem(["sweep", str(tmp_path / "s.yaml"), "--local", "--nodes", "2"]) == 2
    assert "2 nodes asked for, and this machine is one" in capsys.readouterr().err


# ---- runs with a file each


def runs_of(tmp_path: Path, **fields: Any) -> SweepConfig:
    runs = {
        "warm": SweepRunConfig(base=str(STREET), overrides=("method.temperature=0.2", "optim.lr=0.3")),
        "voxelnet": SweepRunConfig(base=str(CONFIGS / "slidr_voxelnet_nuscenes.yaml")),
    }
    return SweepConfig(root=str(tmp_path / "sweep"), **({"runs": runs} | fields))


def test_runs_start_from_their_own_files(tmp_path: Path) -> None:
    sweep = runs_of(tmp_path, overrides=("optim.lr=0.1",), grid={"seed": (0, 1)})
    made = points(sweep, ["data.shards=x", "method.teacher.weights=random"])
    assert [point.run_dir.name for point in made] == [
        "warm-seed_0",
        "warm-seed_1",
        "voxelnet-seed_0",
        "voxelnet-seed_1",
    ]
    rates = [point.config.optim.lr for point in made]
    assert rates == [0.3, 0.3, 0.1, 0.1]  # a run's own overrides are stronger than those for all
    assert made[0].config.method.temperature == 0.2  # type: ignore[attr-defined]
    assert made[2].config.method.backbone.preset == "voxelbackbone8x"  # type: ignore[attr-defined]
    alone = points(runs_of(tmp_path), ["data.shards=x", "method.teacher.weights=random"])
    assert [point.run_dir.name for point in alone] == ["warm", "voxelnet"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"base": str(STREET)}, "2 runs; expected either a base or runs"),
        ({"runs": {}}, "base=None and 0 runs"),
        ({"points": (("seed=1",),)}, "points belong to a base"),
        ({"grid": {"optim.lr": (1,)}}, "optim.lr is in runs and in grid"),
        ({"runs": {"../x": SweepRunConfig(base="a")}}, "expected a name of letters"),
    ],
)
def test_runs_that_make_no_sense_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runs_of(tmp_path, **fields)


def test_texts_of_a_grid_reach_the_run_as_they_were_given(tmp_path: Path) -> None:
    """Names of points are what they were for numbers; a text has its own, which is another run."""
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"base: slidr_street\nroot: {tmp_path}\noverrides: [data.shards=x, method.teacher.weights=random]\n"
        "points: [['data.split=0027', optim.lr=0.10], ['data.split=23', optim.lr=0.10]]\n"
        "grid: {engine.clip_norm: [1e-3], data.voxel.size: [[0.10, 1e-1, 0.20]], data.augment.points.rotate: [no]}\n"
    )
    made = points(load(SweepConfig, file))
    assert [point.config.data.split for point in made] == ["0027", "23"]
    for point, name in zip(made, ("split_.0027.", "split_23"), strict=True):
        config = point.config
        assert (config.optim.lr, config.engine.clip_norm, config.data.voxel.size) == (0.1, 1e-3, (0.1, 0.1, 0.2))
        assert config.data.augment.points.rotate is False
        assert point.run_dir.name.startswith(name)
        assert "-lr_0.1-clip_norm_0.001-size_0.1x0.1x0.2-rotate_false" in point.run_dir.name
        assert "data.split=0027" in point.overrides or name != "split_.0027."


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (["plan", "slidr_nuscenes", "data.shards=x"], PretrainConfig),
        (["submit", "slidr_street", "--nodes", "3"], PretrainConfig),
        (["sweep", "slidr_street"], SweepConfig),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_show_config_prints_what_can_be_given_as_a_config(
    line: list[str], kind: type, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From any folder, and with overrides behind the flag."""
    monkeypatch.chdir(tmp_path)
    extra = ["optim.lr=0.25", "data.shards=0123", *(["method.teacher.weights=random"] if line[0] == "plan" else [])]
    assert tandem([*line, "--show-config", *extra]) == 0
    shown = capsys.readouterr().out
    (tmp_path / "shown.yaml").write_text(shown)
    config = load(kind, "shown.yaml", choices=PRETRAIN_CHOICES if kind is PretrainConfig else None)
    if isinstance(config, PretrainConfig):
        assert (config.optim.lr, config.data.shards) == (0.25, "0123")
    else:
        assert shown.count("optim.lr=0.25 data.shards=0123") == len(points(config))
    if line[0] != "plan":
        assert "# cluster:\n# partition: null\n" in shown
    assert ("# nodes: 3\n" in shown) == (line[0] == "submit")


@pytest.mark.slow
def test_a_table_of_methods_that_never_ran_is_an_error_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "methods"
    monkeypatch.setattr(sys, "argv", ["methods", "--table", "--root", str(root)])
    with pytest.raises(SystemExit, match="2"):
        methods.main()
    assert f"{root} holds nothing of these runs" in capsys.readouterr().err
    assert not root.exists()
