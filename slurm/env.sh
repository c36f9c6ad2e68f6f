# shellcheck shell=bash
# What is particular to your cluster, and nothing else: edit this file, or set the variables before you call a script.

# Where jobs go. sbatch reads both by itself; a script's command line (--partition=, --account=) wins.
# export SBATCH_PARTITION="${SBATCH_PARTITION:-gpu}"
# export SBATCH_ACCOUNT="${SBATCH_ACCOUNT:-my_project}"

# Evaluations that follow a run are asked for by this file; empty: the default partition, one core.
export TANDEM_CLUSTER="${TANDEM_CLUSTER:-}"
# 0: nothing follows a run.
export TANDEM_EVALUATE="${TANDEM_EVALUATE:-1}"

# Folders that all nodes see: raw logs (TANDEM_RAW/waymo, ...), shards (TANDEM_DATA/waymo, ...), runs.
export TANDEM_RAW="${TANDEM_RAW:-/data}"
export TANDEM_DATA="${TANDEM_DATA:-runs/shards}"
export TANDEM_RUNS="${TANDEM_RUNS:-runs}"

# Modules and the Python that has the package installed; a path without a slash in front begins at the repository.
# module load cuda/12.6
export TANDEM_PYTHON="${TANDEM_PYTHON:-.venv/bin/python}"

# Network between nodes: the interface that NCCL and gloo are to use, where they choose the wrong one.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
# export NCCL_IB_HCA=mlx5 NCCL_DEBUG=WARN

# Threads of each process.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
