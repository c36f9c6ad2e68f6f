#!/usr/bin/env bash
# SLidR on the built-in street world: one CPU process a node, no GPU.
#   bash slurm/pretrain_synthetic.sh [--nodes=N ...] [section.field=value ...]      checks, then queues itself
#   sbatch [--nodes=N ...] slurm/pretrain_synthetic.sh [section.field=value ...]    from the repository's root
#SBATCH --job-name=synthetic
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=02:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out

script=slurm/pretrain_synthetic.sh
root=${SLURM_SUBMIT_DIR:-$(dirname "$0")/..} # in a job $0 is a copy elsewhere
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh" || exit

tandem_pretrain configs/pretrain/slidr_street.yaml "data.shards=$TANDEM_DATA/synthetic" "run_dir=$TANDEM_RUNS/slidr_street" -- "$@"
