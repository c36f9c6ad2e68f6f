#!/usr/bin/env bash
# Library: submitit 1.5.4, LocalExecutor. Seen: 2026-11-30.
# Surprise: a local job does not inherit CUDA_VISIBLE_DEVICES. It gets the first gpus_per_node of the machine whatever the
# caller was given, and an empty list (no GPU) where gpus_per_node is left out. Only `visible_gpus`, as numbers, moves it.
# Why it matters: users share a machine by CUDA_VISIBLE_DEVICES=2,3. A pre-training started so runs on GPUs 0 and 1,
# beside somebody else's; GPU or MIG names instead of numbers cannot be passed at all.
# Tandem: launchers/cluster/queues.py (`LocalQueue._start`) puts the caller's choice back in front of the job's Python.
# Test: tests/launchers/test_submit.py, test_local_jobs_see_the_gpus_that_were_chosen_outside.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check submitit==1.5.4
cat >"$work/choice.py" <<'PYTHON'
import os
import sys

import submitit


def visible():
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def of_a_job(**parameters):
    executor = submitit.LocalExecutor(folder=sys.argv[1])
    executor.update_parameters(timeout_min=2, **parameters)
    return executor.submit(visible).result()


print("submitit", submitit.__version__)
os.environ["CUDA_VISIBLE_DEVICES"] = "2,3"
print("expected: a process started on this machine sees what its parent was given, 2,3")
two, none = of_a_job(gpus_per_node=2), of_a_job()
named = of_a_job(gpus_per_node=2, visible_gpus=(2, 3))
print(f"seen: {two!r} with gpus_per_node=2; {none!r} without; {named!r} with visible_gpus=(2, 3)")
sys.exit(0 if (two, none, named) == ("0,1", "", "2,3") else "submitit no longer does what this script states")
PYTHON
(cd "$work" && venv/bin/python choice.py "$work/logs")
