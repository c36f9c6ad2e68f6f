"""A real object store (moto's server) by s3fs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.batch_spec import BatchSpec
from data.loading.loader import DataConfig, build_loader
from data.storage.manifest import load_manifest
from data.storage.remote import download
from data.storage.remote.shard_cache import CacheConfig
from data.storage.shard import ShardError
from tests.helpers.samples import write_toy_set

pytestmark = pytest.mark.slow
boto = pytest.importorskip("botocore.session")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_toy_set(tmp_path_factory.mktemp("set") / "shards", num_logs=4, frames_per_log=3, num_points=100)


@pytest.fixture(scope="module")
def endpoint(root: str) -> Iterator[str]:
    """A store with the set in s3://sets/street; credentials and address as a user would give them."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    given = {
        "AWS_ACCESS_KEY_ID": "user",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        client = boto.get_session().create_client("s3")
        client.create_bucket(Bucket="sets")
        for file in Path(root).iterdir():
            client.put_object(Bucket="sets", Key=f"street/{file.name}", Body=file.read_bytes())
        client.close()
        patch.setattr(download, "_OPENING_WAIT_S", 2.0)
        yield url
    server.stop()


def stream(shards: str, cache: CacheConfig, **settings: object) -> list[tuple[str, ...]]:
    settings = {"num_workers": 0, "start_method": "spawn", "prefetch": 1, "shards_per_group": 2, **settings}
    data = DataConfig(
        shards=shards, split=None, image_size=(40, 72), micro_batch_size=2, cache=cache, max_skip_share=0.0, **settings
    )  # type: ignore[arg-type]
    source = build_loader(data, spec=BatchSpec(superpixels=True), seed=3, rank=0, world_size=1)
    return [batch.keys for batch in itertools.islice(source.batches(0), 9)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_stream_is_that_of_a_folder(root: str, endpoint: str, tmp_path: Path, num_workers: int) -> None:
    cache = CacheConfig(folder=str(tmp_path / "cache"))
    assert stream("s3://sets/street", cache, num_workers=num_workers) == stream(root, CacheConfig())
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 4


def test_what_is_not_there_is_named(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ShardError, match=r"manifest\.json is missing .*no such file"):
        load_manifest("s3://sets/other")
    with pytest.raises(ShardError, match=r"manifest\.json is missing .*no such bucket"):
        load_manifest("s3://nothing/street")


def test_credentials_that_are_missing_are_named(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import s3fs

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ShardError, match="no credentials were found"):
        load_manifest("s3://sets/street")
    s3fs.S3FileSystem.clear_instance_cache()
