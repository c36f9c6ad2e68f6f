#!/usr/bin/env bash
# Waymo Open Dataset to shards: each element of the array makes a share of the logs, a last job joins the manifest.
#   bash slurm/prepare_waymo.sh [--array=0-15 ...] [name=value ...]    checks, queues the array and the job that joins
# Settings: configs/prepare/waymo.yaml, and those of `tandem prepare waymo --help`.
#SBATCH --job-name=prepare-waymo
#SBATCH --array=0-31
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%A_%a.out

script=slurm/prepare_waymo.sh
root=${SLURM_SUBMIT_DIR:-$(dirname "$0")/..} # in a job $0 is a copy elsewhere
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh" || exit

tandem_prepare configs/prepare/waymo.yaml "$TANDEM_RAW/waymo" "$TANDEM_DATA/waymo" -- "$@"
