"""Whatever happens to the small files of one run: it is a row with its trouble, the others are shown, no traceback.

A mutation is a function of seed and number, so a failure's line names all that is needed to see it again. The
slow tests have time for 300; a change of the readers wants more (CONTRIBUTING.md):
FUZZ_NUMBER=1000 FUZZ_SEED=7 pytest -m slow --timeout=0 tests/launchers/test_fuzz_runs.py
"""

from __future__ import annotations

import collections
import io
import logging
import os
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from configs.load import ConfigError
from configs.runs import read_run
from data.storage.shard import ShardError
from engine.errors import CheckpointError
from launchers.cancel import own_jobs
from launchers.evaluation.networks import open_source
from launchers.export import describe
from launchers.planning.measure import step_of_run
from launchers.reporting.collect import collect
from launchers.reporting.hparams import hyper_parameters, metrics_of
from launchers.reporting.report_files import hparam_runs, write_files
from launchers.reporting.run_tables import run_tables
from launchers.reporting.table import markdown, print_table
from launchers.runs.files import find_runs
from launchers.runs.run_status import read_files
from launchers.status import gather, show
from launchers.training.restore import load_run_config
from tests.helpers.damaged_runs import DAMAGED, STEP, WHOLE, rng_of, strike, write_runs
from tests.helpers.run_folder import run_config

SEED = int(os.environ.get("FUZZ_SEED", "0"))
NUMBER = int(os.environ.get("FUZZ_NUMBER", "300"))
PAGE_EVERY = 20
"""Pages are drawn for one mutation in twenty: that takes longer than all the rest."""
NAMED = (ConfigError, CheckpointError, ShardError)


def status(root: Path) -> str:
    """Both runs are rows, and what is said of the whole one is as ever."""
    found, remark = gather([root])
    console = Console(file=io.StringIO(), width=240)
    show(found, remark, console)
    assert {Path(one.run).name for one in found} == {DAMAGED, WHOLE}
    (whole,) = (one for one in found if Path(one.run).name == WHOLE)
    assert (whole.state, whole.step, whole.num_steps, whole.loss) == ("failed", STEP, 50, 0.5)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in shown
    (damaged,) = (one for one in found if Path(one.run).name == DAMAGED)
    return "fine" if len(damaged.why) == len(whole.why) else "told"


def report(root: Path) -> str:
    """As `tandem report`, which shows what it can."""
    sources = collect([root])
    assert WHOLE in sources.runs
    assert DAMAGED in sources.runs
    print_table(sources.results, Console(file=io.StringIO()), sources.labels)
    markdown(sources.results, sources.labels)
    assert any(r.checkpoint and r.checkpoint[0].startswith(WHOLE) for r in sources.results)
    (whole,) = (t for t in sources.trouble if t.run == WHOLE)
    damaged = [t for t in sources.trouble if t.run == DAMAGED]
    return "fine" if [len(t.why) for t in damaged] == [len(whole.why)] and len(sources.trouble) == 2 else "told"


def report_page(root: Path) -> str:
    """As `tandem report --out-dir`, without pictures."""
    sources = collect([root])
    write_files(sources, root.parent / "report.html", "title", {"date": "today"}, 0)
    for run in hparam_runs(sources):
        hyper_parameters([run])
    metrics_of(sources.results, sources.results)
    assert "\x1b" not in (root.parent / "report.html").read_text() + (root.parent / "report.md").read_text()
    return "told"


def of_one_run(root: Path) -> str:
    """Verbs that are about this run: they may refuse it by name."""
    outcome = "fine"
    run = root / DAMAGED
    verbs: tuple[Callable[[], object], ...] = (
        lambda: [table.text() for table in run_tables(run)],
        lambda: open_source(run),
        lambda: describe(checkpoint := run / "checkpoints" / f"step_{STEP:08d}", load_run_config(checkpoint)),
        lambda: step_of_run(run, run_config(run, "shards")),
        lambda: own_jobs([run]),
        lambda: read_files(next(iter(find_runs(run)))).jobs.logs,
    )
    for verb in verbs:
        try:
            verb()
        except NAMED as error:
            outcome = f"told: {error}"
    return outcome


READERS = {"status": status, "report": report, "one run": of_one_run}


def mutations(root: Path, seed: int, numbers: range) -> list[str]:
    """Strike and read; the failures."""
    bad = []
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    canary = root.parent / "canary"
    for number in numbers:
        label, undo = strike(rng_of(seed, number), root, str(canary))
        pages = {"page": report_page} if number % PAGE_EVERY == 0 else {}
        for name, reader in {**READERS, **pages}.items():
            try:
                outcomes[name][reader(root).partition(":")[0]] += 1
            except Exception:
                bad.append(f"seed {seed}, number {number}, {name}: {label}\n{traceback.format_exc(limit=-4)}")
        undo()
        if canary.exists():
            bad.append(f"seed {seed}, number {number}: {label}: code was run")
            canary.unlink()
    for name, counts in outcomes.items():
        assert counts["told"] or len(numbers) < 100, f"{name}: damage was never told of"
    return bad


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root = tmp_path / "runs"
    write_runs(root)
    for name, reader in READERS.items():
        assert reader(root) == "fine", f"{name} before anything was done"
    monkeypatch.setattr("launchers.training.restore.read_run", _once_for_each_content(read_run))
    logging.disable(logging.CRITICAL)
    yield root
    logging.disable(logging.NOTSET)


def _once_for_each_content(read: Callable[[Path], object]) -> Callable[[Path], object]:
    """What a config is loaded to depends on its bytes alone; loading takes half of the time, and few are struck."""
    known: dict[bytes, object] = {}

    def remembered(path: Path) -> object:
        content = path.read_bytes() if path.is_file() else b""
        if content not in known:
            known[content] = read(path)  # an error is not kept
        return known[content]

    return remembered


def test_a_few_mutations(runs: Path) -> None:
    assert not (bad := mutations(runs, SEED, range(10))), "\n".join(bad)


@pytest.mark.slow
def test_many_mutations(runs: Path) -> None:
    assert not (bad := mutations(runs, SEED + 1, range(NUMBER))), f"{len(bad)} of {NUMBER}:\n" + "\n".join(bad[:20])
