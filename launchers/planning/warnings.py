"""What is likely to go wrong in a planned run or to be wasteful."""

from __future__ import annotations

from collections.abc import Iterator

from launchers.drawing.set_tables import human_bytes
from launchers.planning import arithmetic, storage
from launchers.planning.figures import Plan

MIN_STEPS_PER_EPOCH = 20
MIN_STEPS = 1000
MAX_REST = 0.01
"""Samples beyond the asked-for epochs, as a share of them: the last update is always whole."""
MAX_LR_FACTOR = 16.0
"""Of linear scaling without warm-up: Goyal et al. (2017) go from 256 to 8,192 samples (a factor of 32) and need it."""
MAX_TEACHER_SHARE = 0.3
MAX_DATA_WAIT = 0.05
MAX_NETWORK_SHARE = 0.3
MAX_SIMILARITY_BYTES = 2.0**30
MAX_READERS_PER_SHARD = 64
MAX_CHECKPOINT_SHARE = 0.05
INTERVAL_FACTOR = 3.0  # at k times the best interval, the lost time is (k + 1/k) / 2 times the least


def warnings(plan: Plan) -> list[str]:
    """What is likely to go wrong or to be wasteful, each with what to do."""
    return [*_of_data(plan), *_of_batches(plan), *_of_loss_and_memory(plan), *_of_time(plan), *_of_checkpoints(plan)]


def _of_data(plan: Plan) -> Iterator[str]:
    run, data = plan.run, plan.data
    if data.shards is not None and data.shards < run.readers:
        yield (
            f"fewer shards than readers: {data.shards} shards, {run.readers} reading processes; prepare the set with "
            "smaller shards, or lower data.num_workers"
        )
    read = storage.reading(data, run)
    if read.readers_per_shard is not None and read.readers_per_shard > MAX_READERS_PER_SHARD:
        yield (
            f"{read.readers_per_shard:.0f} reading processes share each open shard: hot spots of the file system; "
            "raise data.shards_per_group or stripe the shards"
        )
    if read.in_flight > data.samples:
        yield (
            f"{read.in_flight} samples are in flight and the split has {data.samples}: readers run an epoch ahead; "
            "lower data.prefetch or data.num_workers"
        )


def _of_batches(plan: Plan) -> Iterator[str]:
    run, data = plan.run, plan.data
    if run.global_batch > data.samples:
        yield f"a global batch of {run.global_batch} is more than the {data.samples} samples of the split"
    elif plan.steps_per_epoch < MIN_STEPS_PER_EPOCH:
        yield (
            f"an epoch is {plan.steps_per_epoch:.1f} updates: fewer than {MIN_STEPS_PER_EPOCH} updates see the data "
            "once; use fewer processes or smaller batches"
        )
    if run.num_steps < MIN_STEPS:
        yield f"the whole run is {run.num_steps} updates, under {MIN_STEPS}: more epochs or smaller global batches"
    if run.epochs is not None:
        rest = run.num_steps * run.global_batch - run.epochs * data.samples
        if rest > MAX_REST * run.epochs * data.samples:
            yield (
                f"{run.epochs} x {data.samples} samples are no whole number of updates of {run.global_batch}: "
                f"the last update takes {rest} samples of one more epoch"
            )
    factor = run.lr_factor
    if factor > MAX_LR_FACTOR and run.warmup_steps == 0:
        yield (
            f"the learning rate is scaled up {factor:g} times (optim.reference_batch_size) without warm-up; set "
            "schedule.warmup_steps, or a fixed rate with optim.reference_batch_size=null"
        )
    elif factor > 2 * MAX_LR_FACTOR:
        yield f"the learning rate is scaled up {factor:g} times: further than linear scaling has been shown to hold"


def _of_loss_and_memory(plan: Plan) -> Iterator[str]:
    run = plan.run
    matrix = arithmetic.similarity_bytes(run)
    if matrix > MAX_SIMILARITY_BYTES:
        yield (
            f"gathered negatives: {human_bytes(matrix)} of similarities a process, several times that in the "
            "backward pass; set a smaller method.chunk_rows, or method.gather_negatives=false"
        )
    now = arithmetic.memory(plan.model, run)
    if run.zero_stage == 3 and plan.model.trainable < arithmetic.GATHERED_ONCE_NUMEL and run.world_size > 1:
        yield (
            "ZeRO-3 keeps the gathered weights of a model of this size through the step: it saves "
            f"{human_bytes(now.weights / 2)} of {human_bytes(now.total)} between steps only and gathers in every "
            "micro-batch; stage 1 or 2 is likely to be faster"
        )
    if run.zero_stage == 2 and run.accumulation_steps > 1:
        yield (
            f"ZeRO-2 reduces gradients after each of the {run.accumulation_steps} micro-batches of an update, "
            "stage 1 once; prefer stage 1 unless memory forbids"
        )


def _of_time(plan: Plan) -> Iterator[str]:
    step = plan.step
    if step is None:
        yield "no step time: give --step-time-s, --from-run or --measure for rates, hours and checkpoint advice"
        return
    if step.data_wait_share is not None and step.data_wait_share > MAX_DATA_WAIT:
        yield f"{step.data_wait_share:.0%} of the measured time waits for data: more data.num_workers"
    if step.teacher_share is not None and step.teacher_share > MAX_TEACHER_SHARE:
        yield (
            f"the frozen teacher's forward pass is {step.teacher_share:.0%} of the step: method.teacher.cache=true "
            "computes it once (without image augmentation)"
        )
    if plan.network_s is not None and plan.step_s is not None and plan.network_s / plan.step_s > MAX_NETWORK_SHARE:
        yield (
            f"communication is {plan.network_s / plan.step_s:.0%} of the step if nothing hides it: larger batches a "
            "process, engine.accumulation_steps or a lower engine.zero_stage"
        )


def _of_checkpoints(plan: Plan) -> Iterator[str]:
    taken, every = plan.checkpoint_s, plan.run.checkpoint_every_s
    if taken is None or plan.step is None:
        return
    if every is None:
        yield "no checkpoints but the last one: set checkpoint.every_min"
        return
    best = storage.best_interval_s(taken, plan.between_failures_s)
    if every > INTERVAL_FACTOR * best and plan.train_s is not None and plan.train_s > best:
        yield (
            f"checkpoints every {every / 60:.0f} min; a failure of the job is expected every "
            f"{plan.between_failures_s / 3600:.0f} h, and every {best / 60:.0f} min would lose the least time"
        )
    if taken / every > MAX_CHECKPOINT_SHARE:
        yield f"writing checkpoints takes {taken / every:.0%} of the time: less often, or a faster file system"
