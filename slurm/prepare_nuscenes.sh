#!/usr/bin/env bash
# nuScenes to shards: each element of the array makes a share of the logs, a last job joins the manifest.
#   bash slurm/prepare_nuscenes.sh [--array=0-15 ...] [name=value ...]    checks, queues the array and the job that joins
# Settings: configs/prepare/nuscenes_slidr.yaml, and those of `tandem prepare nuscenes --help`.
#SBATCH --job-name=prepare-nuscenes
#SBATCH --array=0-15
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm/logs/%x-%A_%a.out

script=slurm/prepare_nuscenes.sh
root=${SLURM_SUBMIT_DIR:-$(dirname "$0")/..} # in a job $0 is a copy elsewhere
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh" || exit

tandem_prepare configs/prepare/nuscenes_slidr.yaml "$TANDEM_RAW/nuscenes" "$TANDEM_DATA/nuscenes" -- "$@"
