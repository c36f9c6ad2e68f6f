# shellcheck shell=bash
# What the scripts of this folder share; they source it. Works from the repository's root, on a login node and in a job.
#   tandem_pretrain CONFIG DEFAULT... -- ARGUMENT...    train, requeue if need be, queue the evaluations
#   tandem_finetune CONFIG DEFAULT... -- ARGUMENT...    the same for a detector, which is judged while it trains
#   tandem_prepare CONFIG SOURCE OUT -- ARGUMENT...     convert as an array, then join
set -euo pipefail
: "${script:?}" "${root:?}" # set by the script that sources this
cd "$root"
# shellcheck source=slurm/env.sh
source slurm/env.sh

die() {
    echo "$(basename "$script"): $*" >&2
    exit 2
}

# Splits a command line into sbatch's options (--name=value) and the settings of the program (name=value).
split_arguments() {
    options=()
    settings=()
    local word
    for word in "$@"; do
        case $word in
            -h | --help) sed -n '2,/^#SBATCH/s/^# //p' "$script" && exit ;;
            -*) options+=("$word") ;;
            *=*) settings+=("$word") ;;
            *) die "'$word': expected section.field=value, or an option of sbatch as --name=value" ;;
        esac
    done
    check_job_name "${options[@]}"
}

# Without Python nothing below works: say so first.
check_python() {
    command -v "$TANDEM_PYTHON" >/dev/null ||
        die "no Python at '$TANDEM_PYTHON'; run 'make setup', or set TANDEM_PYTHON in slurm/env.sh"
}

# A job's name is part of its log's: with a slash in it, SLURM finds no folder for the log and the job fails unheard.
check_job_name() {
    local word name
    for word in "--job-name=${SBATCH_JOB_NAME-}" "$@"; do
        case $word in
            --job*=*) name=${word#*=} ;;
            -J*) name=${word#-J} ;;
            *) continue ;;
        esac
        [[ $name != *[!A-Za-z0-9._+=@:,-]* ]] ||
            die "job name $(printf %q "$name"): expected letters, digits and any of . _ + = @ : , -"
    done
}

# Lets SLURM look at partition, account and resources without queueing; then queues this script. Prints the id.
queue() {
    command -v sbatch >/dev/null || die "no sbatch here; run this on a login node of the cluster"
    local answer id
    if ! answer=$(sbatch --test-only "${options[@]}" "$@" 2>&1); then
        die "SLURM refuses the job: ${answer//$'\n'/ }
Partition: ${SBATCH_PARTITION:-the default one}, account: ${SBATCH_ACCOUNT:-the default one}; set SBATCH_PARTITION and \
SBATCH_ACCOUNT in slurm/env.sh, or give --partition= and --account=. Nothing was queued."
    fi
    id=$(sbatch --parsable "${options[@]}" "$@") || exit
    # sbatch accepts jobs that their partition never starts; the reason shows when the scheduler has looked at the job.
    for _ in 1 2 3 4; do
        answer=$(squeue --noheader --jobs "${id%%;*}" --format %r | head -n 1)
        [[ $answer == None ]] || break
        sleep 0.5
    done
    [[ $answer != Partition* ]] ||
        echo "job $id cannot start: its partition is down, or allows less time or fewer nodes ($answer); see sinfo" >&2
    echo "${id%%;*}"
}

tandem_pretrain() {
    local config=$1 defaults=() folders=() run_dir id code=0
    shift
    while [[ $1 != -- ]]; do
        defaults+=("$1")
        shift
    done
    split_arguments "${@:2}"
    settings=("${defaults[@]}" "${settings[@]}")
    [[ -z ${SLURM_JOB_ID:-} || ${#options[@]} -eq 0 ]] ||
        die "${options[0]}: give options of sbatch before the script's name"
    check_python
    run_dir=$("$TANDEM_PYTHON" -m launchers.cluster.sbatch_check "$config" "${settings[@]}") || exit
    mapfile -t folders <<<"$run_dir" # of the run, and of its first stage where it has one
    run_dir=${folders[0]}
    if [[ -z ${SLURM_JOB_ID:-} ]]; then
        id=$(queue "$script" "${settings[@]}") || exit
        echo "queued as $id; run folder: $run_dir; output: slurm/logs/"
        return
    fi
    # SLURM sends SIGTERM to this shell too, at the time limit and on scancel; the lines after srun must still run.
    trap 'echo "$(basename "$script"): SIGTERM"' TERM
    # srun does not take it from sbatch since SLURM 22.05.
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
    "$TANDEM_PYTHON" -m launchers.cluster.srun_reaper "$run_dir" $$ "${folders[@]:1}" &
    # Not --kill-on-bad-exit=1: it kills the others within KillWait (30 s by default), and they need about as long to be
    # sure which rank is lost, to say so in the run's history and to leave with the code that decides what comes next.
    srun --kill-on-bad-exit=0 --wait=120 \
        "$TANDEM_PYTHON" -m "launchers.${verb:-pretrain}" "$config" "${settings[@]}" || code=$?
    "$TANDEM_PYTHON" -m launchers.cluster.after_step "$code" "${folders[@]}" || true
    ((code == 0)) || exit "$code"
    follow "$run_dir"
}

tandem_finetune() {
    local verb=finetune
    tandem_pretrain "$@"
}

# Queues evaluations and report of a trained run.
follow() {
    if [[ $TANDEM_EVALUATE == 0 ]]; then
        echo "TANDEM_EVALUATE=0: no evaluations; later: tandem submit --follow $1"
        return
    fi
    "$TANDEM_PYTHON" -m launchers.submit --follow "$1" ${TANDEM_CLUSTER:+--cluster "$TANDEM_CLUSTER"} || {
        echo "$1 is trained, but its evaluations are not queued; later: tandem submit --follow $1" >&2
        exit 1
    }
}

tandem_prepare() {
    local config=$1 source=$2 out=$3 array join
    split_arguments "${@:5}"
    check_python
    if [[ -z ${SLURM_JOB_ID:-} ]]; then
        [[ $source == - || -d $source ]] ||
            die "no raw data in $source; set TANDEM_RAW in slurm/env.sh to the folder that holds $(basename "$source")"
        array=$(queue "$script" "${settings[@]}") || exit
        options+=(--array=0-0 --dependency="afterok:$array" --kill-on-invalid-dep=yes)
        join=$(queue "$script" --join "${settings[@]}") || exit
        echo "queued as array $array, joined by $join; shards: $out; output: slurm/logs/"
        return
    fi
    export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
    local part=(--share "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT")
    [[ ${options[*]} != --join ]] || part=(--join)
    # A process a core, each with one thread.
    OMP_NUM_THREADS=1 srun "$TANDEM_PYTHON" -m launchers.prepare "$config" "$source" "$out" \
        "${settings[@]}" --workers "${SLURM_CPUS_PER_TASK:-1}" "${part[@]}"
}
