#!/usr/bin/env bash
# SLidR on nuScenes on 4 GPUs, batch 16, rate 2, as in its paper's runs for detection; its table 2 is from one GPU, batch 4,
# rate 0.5: --ntasks-per-node=1 --gpus-per-node=1.
#   bash slurm/pretrain_nuscenes.sh [--nodes=N ...] [section.field=value ...]      checks, then queues itself
#   sbatch [--nodes=N ...] slurm/pretrain_nuscenes.sh [section.field=value ...]    from the repository's root
#SBATCH --job-name=nuscenes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out

script=slurm/pretrain_nuscenes.sh
root=${SLURM_SUBMIT_DIR:-$(dirname "$0")/..} # in a job $0 is a copy elsewhere
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh" || exit

tandem_pretrain configs/pretrain/slidr_nuscenes.yaml "data.shards=$TANDEM_DATA/nuscenes" "run_dir=$TANDEM_RUNS/slidr_nuscenes" -- "$@"
