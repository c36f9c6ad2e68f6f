from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from data.batch_spec import BatchSpec, VoxelConfig
from data.loading.evaluation import image_batches, load_batch, point_batches
from data.loading.loader import DataConfig, ShardLoader, build_loader
from data.loading.skips import Skip, SkipLedger
from data.loading.workers import Loaded, WorkerConfig, run_workers
from data.sample import Batch
from data.storage.manifest import load_manifest
from data.storage.reader import SampleReader
from data.storage.shard import ShardError
from data.storage.teacher_cache import TeacherCache, TeacherCacheWriter
from data.views.augment import AugmentConfig, ImageAugmentConfig
from tests.helpers.samples import write_toy_set

REPOSITORY = Path(__file__).resolve().parents[3]
AUGMENT = AugmentConfig(min_pairs=20)
WANTS = BatchSpec(superpixels=True)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three training logs of four samples, one log to validate on."""
    return write_toy_set(tmp_path_factory.mktemp("set"), num_logs=4, frames_per_log=4, num_points=300)


def loader(
    root: str, *, seed: int = 0, rank: int = 0, world_size: int = 1, spec: BatchSpec = WANTS, **options: object
) -> ShardLoader:
    settings: dict[str, object] = {
        "shards": root,
        "micro_batch_size": 3,
        "image_size": (40, 72),
        "augment": AUGMENT,
        "num_workers": 0,
    }
    config = DataConfig(**(settings | options))  # type: ignore[arg-type]
    return build_loader(config, spec=spec, seed=seed, rank=rank, world_size=world_size)


def take(source: ShardLoader, start: int, count: int) -> list[Batch]:
    stream = source.batches(start)
    batches = list(itertools.islice(stream, count))
    stream.close()  # type: ignore[attr-defined]
    return batches


def assert_same(a: Sequence[Batch], b: Sequence[Batch]) -> None:
    assert [batch.keys for batch in a] == [batch.keys for batch in b]
    for one, other in zip(a, b, strict=True):
        assert (one.superpixels is None) == (other.superpixels is None)
        assert one.superpixels is None or one.superpixels.num == other.superpixels.num
        tensors = other.tensors()
        assert one.tensors().keys() == tensors.keys()
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, tensors[name]), name


def break_samples(root: str, keys: Sequence[str]) -> None:
    """Overwrite the samples' first header."""
    manifest = load_manifest(root)
    for index in range(len(manifest)):
        if manifest.key(index) in keys:
            with open(manifest.shard_path(int(manifest.sample_shard[index])), "r+b") as file:
                file.seek(int(manifest.sample_offset[index]))
                file.write(b"\xff" * 512)


# ---- the batch
def test_a_batch_is_consistent(root: str) -> None:
    (batch,) = take(loader(root), 0, 1)
    assert (batch.images.shape, batch.images.dtype) == ((6, 3, 40, 72), torch.uint8)
    assert batch.cameras.sample.tolist() == [0, 0, 1, 1, 2, 2]
    assert (batch.point_sample.diff() >= 0).all()
    assert (batch.voxel_coords[batch.point_voxel, 0] == batch.point_sample).all()
    assert (batch.voxel_coords[:, 0].diff() >= 0).all()
    assert len(torch.unique(batch.voxel_coords, dim=0)) == len(batch.voxel_coords)
    assert len(torch.unique(batch.point_voxel)) == len(batch.voxel_coords) == len(batch.voxel_features)
    # A pair joins a point and an image of one sample.
    assert (batch.point_sample[batch.pairs.point] == batch.cameras.sample[batch.pairs.image]).all()
    # A pair's superpixel is the one drawn at its nearest pixel, and belongs to its image alone.
    u, v = torch.floor(batch.pairs.uv + 0.5).long().T
    assert torch.equal(batch.superpixels.of_pixel[batch.pairs.image, v, u], batch.superpixels.of_pair)
    assert batch.superpixels.num == 6 * 18  # 48 x 96 pixels in squares of 16
    assert torch.equal(batch.superpixels.of_pixel.flatten(1).amin(1) // 18, torch.arange(6))
    assert torch.equal(batch.superpixels.of_pixel.flatten(1).amax(1) // 18, torch.arange(6))
    assert batch.labels is None
    assert batch.superpixels.features is None


@pytest.mark.parametrize(("num_workers", "method"), [(1, "forkserver"), (2, "forkserver"), (2, "fork")])
def test_any_number_of_workers_gives_the_same_batches_from_any_position(
    root: str, num_workers: int, method: str
) -> None:
    if method == "fork" and sys.version_info >= (3, 12):
        pytest.skip("Python warns about fork beside threads")
    alone = take(loader(root), 0, 9)
    assert_same(alone, take(loader(root, num_workers=num_workers, start_method=method), 0, 9))
    assert_same(alone[5:], take(loader(root, num_workers=num_workers, start_method=method), 5, 4))


def _renamed(batch: Batch) -> Batch:
    return replace(batch, keys=tuple(f"{key}!" for key in batch.keys))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_finishes_a_batch_is_called_where_it_is_made(root: str, num_workers: int) -> None:
    plain = loader(root, num_workers=num_workers)
    source = build_loader(plain._config, spec=WANTS, seed=0, rank=0, world_size=1, finish=_renamed)
    for before, after in zip(take(plain, 2, 2), take(source, 2, 2), strict=True):
        assert after.keys == _renamed(before).keys
        assert_same([replace(after, keys=before.keys)], [before])


def test_an_interrupted_stream_goes_on_as_if_it_had_not_been(root: str) -> None:
    whole = take(loader(root), 0, 10)
    for stop in (1, 3, 7):
        source = loader(root)
        state = source.state(stop)
        source.check_state(state)
        assert state["samples_taken"] == 3 * stop
        assert_same(whole[stop:], take(source, int(state["samples_taken"]) // 3, 10 - stop))


def test_every_sample_once_an_epoch_and_never_the_same_augmentation(root: str) -> None:
    batches = take(loader(root, num_workers=2), 0, 12)  # three epochs of 12 samples
    keys = [key for batch in batches for key in batch.keys]
    clouds = [batch.points[batch.point_sample == s].numpy().tobytes() for batch in batches for s in range(3)]
    for epoch in range(3):
        assert len(set(keys[12 * epoch : 12 * epoch + 12])) == 12
    assert len(set(clouds)) == 36


def test_ranks_take_shares_of_one_global_batch(root: str) -> None:
    alone = take(loader(root, micro_batch_size=4), 0, 6)
    ranks = [take(loader(root, micro_batch_size=2, rank=rank, world_size=2), 0, 6) for rank in range(2)]
    for step in range(6):
        first, second = ranks[0][step], ranks[1][step]
        assert alone[step].keys == first.keys + second.keys
        assert torch.equal(alone[step].points, torch.cat((first.points, second.points)))
        assert torch.equal(alone[step].images, torch.cat((first.images, second.images)))


def test_the_global_generators_are_left_alone(root: str) -> None:
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    take(loader(root), 0, 2)
    take(loader(root, num_workers=1), 0, 2)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_limit_and_split(root: str) -> None:
    assert loader(root).samples_per_epoch == 12
    assert loader(root, limit=5).samples_per_epoch == 5
    keys = {key for batch in take(loader(root, split="val", micro_batch_size=2), 0, 4) for key in batch.keys}
    assert keys == {f"log-003_{frame:06d}" for frame in range(4)}


# ---- the state
def test_states_of_other_streams_are_refused(root: str) -> None:
    state = loader(root).state(7)
    assert len(state) < 10
    assert all(isinstance(value, int | str) for value in state.values())
    loader(root, micro_batch_size=1, rank=1, world_size=3).check_state(state)
    loader(root, micro_batch_size=1).check_state(state)
    for other, name in [
        (loader(root, seed=1), "seed"),
        (loader(root, limit=6), "samples_per_epoch"),
        (loader(root, shards_per_group=2), "shards_per_group"),
    ]:
        with pytest.raises(ValueError, match=f"{name} is"):
            other.check_state(state)
    with pytest.raises(ValueError, match="samples is"):
        loader(root).check_state(state | {"samples": "other"})
    with pytest.raises(ValueError, match="samples_taken is -1"):
        loader(root).check_state(state | {"samples_taken": -1})
    with pytest.raises(ValueError, match=r"21 samples were taken, .* no multiple of micro_batch_size 1 x 2 ranks"):
        loader(root, micro_batch_size=1, world_size=2).check_state(state)


def test_states_that_count_batches_are_still_read(root: str) -> None:
    old = loader(root).state(7)
    del old["samples_taken"]
    loader(root, micro_batch_size=1).check_state(old | {"position": 7, "global_micro_batch": 3})
    with pytest.raises(ValueError, match="21 samples were taken"):
        loader(root, micro_batch_size=2).check_state(old | {"position": 7, "global_micro_batch": 3})
    with pytest.raises(ValueError, match="position is -1"):
        loader(root).check_state(old | {"position": -1, "global_micro_batch": 3})
    with pytest.raises(ValueError, match="position is None"):
        loader(root).check_state(old)


def test_bad_settings_are_refused(root: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rank is 2"):
        loader(root, rank=2, world_size=2)
    with pytest.raises(ShardError, match="no finished shard set"):
        loader(str(tmp_path))
    with pytest.raises(ShardError, match="'test' is not in the set"):
        loader(root, split="test")
    for name, value in [("micro_batch_size", 0), ("num_workers", -1), ("max_skip_share", 1.5), ("limit", 0)]:
        with pytest.raises(ValueError, match=f"{name}: got"):
            DataConfig(shards=root, **{name: value})  # type: ignore[arg-type]


# ---- damaged samples
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_sample_is_replaced_and_counted(tmp_path: Path, num_workers: int) -> None:
    root = write_toy_set(tmp_path, num_logs=4, frames_per_log=4, num_points=300)
    break_samples(root, ["log-001_000002"])
    source = loader(root, num_workers=num_workers)
    batches = take(source, 0, 12)
    keys = [key for batch in batches for key in batch.keys]
    assert {len(batch.keys) for batch in batches} == {3}
    assert "log-001_000002" not in keys
    assert len(set(keys)) == 11
    assert sum(source.counters.values()) == 1  # counted once, though met in each of the three epochs
    assert_same(batches[4:6], take(loader(root), 4, 2))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_damaged_samples_stop_the_run(tmp_path: Path, num_workers: int) -> None:
    root = write_toy_set(tmp_path, num_logs=4, frames_per_log=4, num_points=300)
    break_samples(root, ["log-001_000002", "log-002_000000"])
    with pytest.raises(ShardError, match=r"(?s)^2 of .*tar-broken: 2, e\.g\. log-00.*raise max_skip_share"):
        take(loader(root, num_workers=num_workers), 0, 12)
    assert len(take(loader(root, num_workers=num_workers, max_skip_share=0.2), 0, 12)) == 12
    with pytest.raises(ShardError, match=r"^1 of the "):
        take(loader(root, num_workers=num_workers, max_skip_share=0.0), 0, 12)


def test_nothing_but_damaged_samples_ends_with_an_error(tmp_path: Path) -> None:
    root = write_toy_set(tmp_path, num_logs=2, frames_per_log=2, num_points=300)
    break_samples(root, ["log-000_000000", "log-000_000001"])
    with pytest.raises(ShardError, match=r"^2 of the "):
        take(loader(root, max_skip_share=1.0), 0, 1)


def test_a_set_without_superpixels_says_so(tmp_path: Path) -> None:
    root = write_toy_set(tmp_path, num_logs=2, frames_per_log=4, num_points=300, superpixels=False)
    with pytest.raises(ShardError, match="superpixels-missing"):
        take(loader(root), 0, 2)
    (batch,) = take(loader(root, spec=BatchSpec()), 0, 1)
    assert batch.superpixels is None


def skip(index: int) -> Skip:
    return Skip(index=index, reason="image-broken", key=f"k{index}", shard="s.tar", detail="")


@pytest.mark.parametrize(
    ("share", "num_samples", "seen", "tolerated"),
    [(0.01, 20, 20, 1), (0.01, 500, 10, 5), (0.01, 5000, 100, 10), (0.01, 5000, 4000, 40), (0.01, 5000, 90000, 50)],
)
def test_how_many_damaged_samples_are_tolerated(share: float, num_samples: int, seen: int, tolerated: int) -> None:
    ledger = SkipLedger(max_share=share, num_samples=num_samples, root="set")
    ledger.account(seen, [skip(index) for index in range(tolerated)])
    ledger.account(0, [skip(index) for index in range(tolerated)])  # the same ones again
    assert ledger.counters == {"image-broken": tolerated}
    with pytest.raises(ShardError, match=f"image-broken: {tolerated + 1}"):
        ledger.account(0, [skip(tolerated)])


def test_samples_without_a_partner_are_no_damage() -> None:
    def alone(index: int) -> Skip:
        return dataclasses.replace(skip(index), reason="no-partner")

    ledger = SkipLedger(max_share=0.01, num_samples=100, root="set")
    ledger.account(100, [*(alone(index) for index in range(50)), skip(50)])
    assert ledger.counters == {"no-partner": 50, "image-broken": 1}
    with pytest.raises(ShardError, match=r"^1 of the (.|\n)*no-partner: 51(.|\n)*without a partner may be half"):
        ledger.account(0, [alone(51)])
    with pytest.raises(ShardError, match=r"^2 of the "):
        ledger.account(0, [skip(52)])


# ---- teacher cache
def make_cache(root: str, leave_out: int | None = None, extra: int = 0) -> TeacherCache:
    manifest = load_manifest(root)
    writer = TeacherCacheWriter(root, f"k{leave_out}{extra}", 4, manifest)
    for index in writer.missing(np.arange(len(manifest))).tolist():
        if index != leave_out:
            rows = np.arange(36 + extra)[:, None] + 100.0 * index + np.arange(4) / 8
            writer.add(index, rows.astype(np.float32), (18, 18 + extra))
    return writer.finish()


def cached_loader(root: str, cache: TeacherCache, num_workers: int = 0) -> ShardLoader:
    augment = dataclasses.replace(AUGMENT, image=ImageAugmentConfig(enabled=False))
    config = DataConfig(shards=root, micro_batch_size=3, image_size=(40, 72), augment=augment, num_workers=num_workers)
    return build_loader(config, spec=WANTS, seed=0, rank=0, world_size=1, teacher_cache=cache)


def test_cached_features_take_the_place_of_images(root: str) -> None:
    cache = make_cache(root)
    batches = take(cached_loader(root, cache), 0, 5)
    assert_same(batches, take(cached_loader(root, cache, num_workers=1), 0, 5))
    plain = take(loader(root, augment=dataclasses.replace(AUGMENT, image=ImageAugmentConfig(enabled=False))), 0, 5)
    manifest = load_manifest(root)
    index = {manifest.key(number): number for number in range(len(manifest))}
    for batch, with_images in zip(batches, plain, strict=True):
        assert batch.images is None
        assert batch.superpixels.of_pixel is None
        assert torch.equal(batch.points, with_images.points)
        assert torch.equal(batch.superpixels.of_pair, with_images.superpixels.of_pair)
        assert torch.equal(batch.cameras.sample, with_images.cameras.sample)
        assert batch.superpixels.num == with_images.superpixels.num == len(batch.superpixels.features) == 108
        assert batch.superpixels.features.dtype == torch.float32
        for sample, key in enumerate(batch.keys):
            expected = torch.from_numpy(np.array(cache.features(index[key], key))).float()
            assert torch.equal(batch.superpixels.features[36 * sample : 36 * sample + 36], expected)


def test_what_does_not_go_with_a_cache_is_refused(root: str, tmp_path: Path) -> None:
    cache = make_cache(root)
    with pytest.raises(ValueError, match=r"augment\.image\.enabled=false"):
        build_loader(DataConfig(shards=root), spec=WANTS, seed=0, rank=0, world_size=1, teacher_cache=cache)
    other = write_toy_set(tmp_path / "other", num_logs=2, frames_per_log=2, num_points=50)
    with pytest.raises(ShardError, match="other shards"):
        cached_loader(other, cache)
    with pytest.raises(ShardError, match="18 superpixels in the shards, 19 in"):
        take(cached_loader(root, make_cache(root, extra=1)), 0, 1)
    source = cached_loader(root, make_cache(root, leave_out=3))
    assert len(take(source, 0, 4)) == 4
    assert source.counters == {"not-cached": 1}


# ---- in a given order
@pytest.mark.parametrize("num_workers", [0, 1])
def test_point_batches_hold_every_point_in_the_given_order(root: str, num_workers: int) -> None:
    manifest = load_manifest(root)
    reader = SampleReader(manifest)
    indices = np.array([5, 1, 14, 7, 2])
    voxel = VoxelConfig(kind="cartesian", size=(0.5,) * 3, range_min=(-5.0,) * 3, range_max=(5.0,) * 3)
    batches = list(point_batches(reader, indices, voxel, batch_size=2, num_workers=num_workers))
    assert [batch.keys for batch in batches] == [
        tuple(manifest.key(int(i)) for i in part) for part in ((5, 1), (14, 7), (2,))
    ]
    for batch, part in zip(batches, ((5, 1), (14, 7), (2,)), strict=True):
        samples = [reader.read(i) for i in part]
        assert batch.num_points == sum(len(sample.points_lidar) for sample in samples)
        np.testing.assert_array_equal(batch.labels, np.concatenate([sample.labels for sample in samples]))
        assert batch.images is None
        assert batch.pairs is None


def test_damaged_samples_are_left_out_of_point_batches(tmp_path: Path) -> None:
    root = write_toy_set(tmp_path, num_logs=2, frames_per_log=4, num_points=50)
    break_samples(root, ["log-000_000001"])
    reader = SampleReader(load_manifest(root))
    batches = list(point_batches(reader, np.arange(8), VoxelConfig(), batch_size=1))
    assert len(batches) == 7
    with pytest.raises(ShardError, match=r"^1 of the "):
        list(point_batches(reader, np.arange(8), VoxelConfig(), batch_size=1, max_skip_share=0.0))


def test_image_batches_equal_load_batch(root: str) -> None:
    reader = SampleReader(load_manifest(root))
    config = DataConfig(shards=root, image_size=(40, 72), augment=AUGMENT, num_workers=0)
    stream = list(image_batches(reader, np.arange(6, 11), config, spec=WANTS, batch_size=2))
    assert [indices for indices, _ in stream] == [(6, 7), (8, 9), (10,)]
    assert_same([batch for _, batch in stream], [load_batch(reader, indices, config, WANTS) for indices, _ in stream])


# ---- workers
def die(number: int) -> Loaded:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return Loaded(batch=None, num_seen=number)


def fail(number: int) -> Loaded:
    raise ZeroDivisionError(f"batch {number}")


def test_a_worker_that_dies_gives_an_error() -> None:
    with pytest.raises((ShardError, RuntimeError), match="DataLoader worker"):
        list(run_workers(die, range(5), WorkerConfig(num_workers=1)))


def test_an_error_in_a_worker_arrives_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError, match="batch 0"):
        list(run_workers(fail, range(5), WorkerConfig(num_workers=1)))


@pytest.mark.slow
def test_workers_ignore_preemption_signals_and_end_with_a_killed_parent(root: str) -> None:
    script = f"""
    import time
    from data.loading.loader import DataConfig, build_loader
    from data.batch_spec import BatchSpec
    if __name__ == "__main__":
        config = DataConfig(shards={root!r}, image_size=(40, 72), num_workers=2, micro_batch_size=2)
        stream = build_loader(config, spec=BatchSpec(), seed=0, rank=0, world_size=1).batches(0)
        for _ in range(4):  # both workers have made batches, so both are set up
            next(stream)
        print("ready", flush=True)
        for batch in stream:
            time.sleep(0.05)
            print(".", flush=True)
    """
    path = Path(root) / "stream.py"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        family = psutil.Process(process.pid).children(recursive=True)
        workers = [child for child in family if child.ppid() != process.pid]
        assert len(workers) == 2
        for worker in workers:
            worker.send_signal(signal.SIGUSR1)
            worker.send_signal(signal.SIGTERM)
        for _ in range(30):  # more than what was made ahead
            assert process.stdout.readline() == ".\n"
        process.kill()
        deadline = time.monotonic() + 20
        while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in workers):
            assert time.monotonic() < deadline, "workers outlived their parent"
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["forkserver", "spawn", "fork"])
def test_signals_to_the_whole_group_while_workers_start(root: str, start_method: str) -> None:
    """From before the fork server is there until batches flow: nobody dies, and the trainer hears them."""
    script = f"""
    import signal
    from data.loading.loader import DataConfig, build_loader
    from data.batch_spec import BatchSpec
    if __name__ == "__main__":
        heard = set()
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: heard.add(number))
        print("ready", flush=True)
        config = DataConfig(
            shards={root!r}, image_size=(40, 72), num_workers=2, micro_batch_size=2, start_method={start_method!r}
        )
        stream = build_loader(config, spec=BatchSpec(), seed=0, rank=0, world_size=1).batches(0)
        for _ in range(12):
            next(stream)
        stream.close()
        for number in heard:  # as our launchers do: the interpreter's end would restore what kills
            signal.signal(number, signal.SIG_IGN)
        print("done", len(heard), flush=True)
    """
    path = Path(root) / "group.py"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in itertools.cycle((signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)):
            if process.poll() is not None:
                break
            os.killpg(process.pid, number)
            time.sleep(0.01)
        output, errors = process.communicate()
    assert (process.returncode, output) == (0, "done 4\n"), errors


def test_an_iterator_left_open_does_not_keep_the_process_alive(root: str) -> None:
    script = f"""
    from data.loading.loader import DataConfig, build_loader
    from data.batch_spec import BatchSpec
    if __name__ == "__main__":
        config = DataConfig(shards={root!r}, image_size=(40, 72), num_workers=1, micro_batch_size=2)
        stream = build_loader(config, spec=BatchSpec(), seed=0, rank=0, world_size=1).batches(0)
        next(stream)
        __builtins__.left_open = stream
    """
    path = Path(root) / "left_open.py"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(path)], check=True, env=environment, timeout=60)
