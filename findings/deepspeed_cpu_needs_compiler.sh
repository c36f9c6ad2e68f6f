#!/usr/bin/env bash
# Library: DeepSpeed 0.19.8 on torch 2.13.0, CPU. Seen: 2026-12-01.
# Surprise: init_distributed over gloo builds a C++ extension, the all-reduce in shared memory, which training does not call.
# Whether it can be built is asked of a table in which it stands as compatible without a compiler, too: where none is installed,
# joining a group of processes fails with "Error building extension". The table itself is made by running a compiler (gcc
# with -laio, for another extension), anew in every process.
# Why it matters: on CPU nodes and in slim containers, where everything is installed from wheels, DeepSpeed imports, and then no
# training starts; where there is a compiler, the first start takes half a minute or more.
# Tandem: gives the table itself, with this extension left out (engine/deepspeed_config.py: import_deepspeed).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 setuptools==80.9.0 wheel==0.46.1 ninja==1.13.0
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-build-isolation deepspeed==0.19.8
mkdir "$work/bin"  # a machine without a compiler
ln -s "$(command -v uname)" "$work/bin/"
PATH="$work/bin:$work/venv/bin" TORCH_EXTENSIONS_DIR="$work/extensions" DS_ACCELERATOR=cpu MASTER_ADDR=127.0.0.1 MASTER_PORT=29777 \
    RANK=0 LOCAL_RANK=0 WORLD_SIZE=1 "$work/venv/bin/python" - <<'PYTHON'
import sys

import deepspeed

table = deepspeed.ops.__compatible_ops__
try:
    deepspeed.init_distributed(dist_backend="gloo")
    said = "joined"
except RuntimeError as error:
    said = str(error).splitlines()[0]
print("deepspeed", deepspeed.__version__)
print("expected: one process joins a group over gloo; nothing is compiled for that")
print(f"seen: the table says deepspeed_shm_comm={table['deepspeed_shm_comm']} without a compiler; init_distributed: {said}")
right = table["deepspeed_shm_comm"] and said.startswith("Error building extension")
sys.exit(0 if right else "DeepSpeed no longer does what this script states")
PYTHON
