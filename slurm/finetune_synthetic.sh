#!/usr/bin/env bash
# SECOND on the built-in street world: one CPU process a node, no GPU. From a run: init=runs/<run>.
#   bash slurm/finetune_synthetic.sh [--nodes=N ...] [section.field=value ...]      checks, then queues itself
#   sbatch [--nodes=N ...] slurm/finetune_synthetic.sh [section.field=value ...]    from the repository's root
#SBATCH --job-name=second
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=02:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out

script=slurm/finetune_synthetic.sh
root=${SLURM_SUBMIT_DIR:-$(dirname "$0")/..} # in a job $0 is a copy elsewhere
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh" || exit

tandem_finetune configs/finetune/second_street.yaml "data.shards=$TANDEM_DATA/synthetic" "run_dir=$TANDEM_RUNS/second_street" -- "$@"
