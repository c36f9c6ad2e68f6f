#!/usr/bin/env bash
# SLidR on KITTI raw: one camera, 4 GPUs.
#   bash slurm/pretrain_kitti.sh [--nodes=N ...] [section.field=value ...]      checks, then queues itself
#   sbatch [--nodes=N ...] slurm/pretrain_kitti.sh [section.field=value ...]    from the repository's root
#SBATCH --job-name=kitti
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%j.out

script=slurm/pretrain_kitti.sh
root=${SLURM_SUBMIT_DIR:-$(dirname "$0")/..} # in a job $0 is a copy elsewhere
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh" || exit

tandem_pretrain configs/pretrain/slidr_kitti.yaml "data.shards=$TANDEM_DATA/kitti" "run_dir=$TANDEM_RUNS/slidr_kitti" -- "$@"
