#!/usr/bin/env bash
# KITTI raw to shards: each element of the array makes a share of the logs, a last job joins the manifest.
#   bash slurm/prepare_kitti.sh [--array=0-15 ...] [name=value ...]    checks, queues the array and the job that joins
# Settings: configs/prepare/kitti.yaml, and those of `tandem prepare kitti-raw --help`.
#SBATCH --job-name=prepare-kitti
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%A_%a.out

script=slurm/prepare_kitti.sh
root=${SLURM_SUBMIT_DIR:-$(dirname "$0")/..} # in a job $0 is a copy elsewhere
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh" || exit

tandem_prepare configs/prepare/kitti.yaml "$TANDEM_RAW/kitti_raw" "$TANDEM_DATA/kitti" -- "$@"
