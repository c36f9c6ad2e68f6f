"""Where a sample is read: random access to the samples of a prepared set by their row in the manifest.

A sample is read with one `pread` at its (shard, offset), so any order costs the same. The set may lie behind a URL;
`data.storage.store` says where its bytes come from, `data.storage.decode` what is made of them.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

from common.retry import RETRY_MIN, StorageAwayError
from data.sample import Sample
from data.storage.damage import DamagedError
from data.storage.decode import DecodeSpec, Images, SuperpixelForm, decode_sample
from data.storage.encode import MAX_SAMPLE_BYTES, check_fits_set
from data.storage.manifest import Manifest
from data.storage.shard import ShardError
from data.storage.store import is_url, open_store
from data.storage.untrusted import tar_members


class SampleError(ShardError):
    """One sample cannot be used; the loader skips and counts it.

    Attributes:
        reason: one of `data.storage.damage.REASONS`, or one of the loader's own: "zero-pairs", "no-points",
            "no-images", "no-partner", "superpixels-missing", "no-boxes", "no-labels", "no-instances", "not-cached".
        key: the sample's key.
        shard: file name of its tar.
    """

    def __init__(self, reason: str, key: str, shard: str, detail: str = "") -> None:
        super().__init__(reason, key, shard, detail)
        self.reason = reason
        self.key = key
        self.shard = shard
        self.detail = detail

    def __str__(self) -> str:
        """One line for a log."""
        return f"sample {self.key} in {self.shard}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@contextmanager
def blamed_on(key: str, shard: str) -> Iterator[None]:
    """What goes wrong inside is the sample's doing: a `SampleError`, so that it is skipped and counted.

    Damage keeps its reason; any other exception, a MemoryError too, is an "error" that says what came up and where. A
    `ShardError` passes: it tells of the set or of its storage.
    """
    try:
        yield
    except ShardError:
        raise
    except Exception as error:
        damage = error if isinstance(error, DamagedError) else DamagedError.of(error)
        raise SampleError(damage.reason, key, shard, damage.detail) from error


class Reader(ABC):
    """Reads the samples of one set (`SampleReader`) or of several (`data.storage.mixture.MixedReader`).

    Attributes:
        manifest: of the set, or of all sets joined.
        remote_shards: those shards of the manifest that lie behind a URL.
    """

    manifest: Manifest
    remote_shards: Collection[int]

    def read(
        self,
        index: int,
        *,
        images: Images = True,
        superpixels: SuperpixelForm = True,
        labels: bool = True,
        depth: bool = False,
        image_labels: bool = False,
    ) -> Sample:
        """One sample; what is not asked for is not decoded and None.

        Raises:
            SampleError: the sample is damaged. Its bytes are compared with their checksum even where the damaged
                part was not asked for.
            ShardError: the storage of the set went away and did not come back in time.
            IndexError: no such sample.
        """
        if not 0 <= index < len(self.manifest):
            raise IndexError(f"sample {index} of a set of {len(self.manifest)}")
        parts = DecodeSpec(
            images=images, superpixels=superpixels, labels=labels, depth=depth, image_labels=image_labels
        )
        return self.read_parts(index, parts)

    @abstractmethod
    def read_parts(self, index: int, parts: DecodeSpec) -> Sample:
        """As `read`, of a sample that exists."""

    @abstractmethod
    def expect(self, shards: Sequence[int]) -> None:
        """Say which shards will be read next, in this order: a set behind a URL fetches them ahead."""

    def shard_of(self, index: int) -> str:
        """File name of the tar that holds a sample."""
        return self.manifest.shards[int(self.manifest.sample_shard[index])].file


class SampleReader(Reader):
    """Reads the samples of one set.

    Safe to pickle and to use on both sides of a fork; one reader a thread.
    """

    def __init__(self, manifest: Manifest, *, retry_min: float = RETRY_MIN) -> None:
        """Opens nothing yet; `retry_min`: minutes for which the set's storage may be away."""
        self.manifest = manifest
        self.remote_shards = range(len(manifest.shards) if is_url(manifest.root) else 0)
        # Not the store of `load_manifest`: a run that starts must fail at once, one that trains waits for its storage.
        self._store = open_store(manifest.root, manifest.cache, retry_min=retry_min)
        self._bounds = manifest.bounds

    def close(self) -> None:
        """Close the tars; the next read opens them again."""
        self._store.close()

    def expect(self, shards: Sequence[int]) -> None:
        """See `Reader.expect`."""
        self._store.expect([self.manifest.shards[shard] for shard in shards])

    def read_parts(self, index: int, parts: DecodeSpec) -> Sample:
        """See `Reader.read_parts`."""
        key = self.manifest.key(index)
        with blamed_on(key, self.shard_of(index)):
            data = self._sample_bytes(index)
            sample = decode_sample(key, _members(key, data), parts)
            check_fits_set(sample, self._bounds)
            # Last, so that damage that has a name gets it.
            if zlib.crc32(data) != int(self.manifest.sample_crc32[index]):
                raise DamagedError("checksum", "the bytes are not those that were written")
        return sample

    def _sample_bytes(self, index: int) -> bytes:
        offset, size = int(self.manifest.sample_offset[index]), int(self.manifest.sample_size[index])
        # Before anything is allocated: the table may come from somebody else, or be damaged.
        if not (offset >= 0 and 0 < size <= MAX_SAMPLE_BYTES):
            raise DamagedError("tar-broken", f"the manifest states {size} bytes at {offset}")
        shard = self.manifest.shards[int(self.manifest.sample_shard[index])]
        try:
            data = self._store.read_at(shard, size, offset, int(self.manifest.sample_crc32[index]))
        except OSError as error:
            raise DamagedError("shard-missing", str(error)) from error
        except StorageAwayError as error:
            raise ShardError(str(error)) from error
        if len(data) != size:
            raise DamagedError("tar-broken", f"truncated: {len(data)} of {size} bytes at {offset}")
        return data


def _members(key: str, data: bytes) -> dict[str, bytes]:
    """Files of one sample by name without the key.

    Raises:
        DamagedError: not a whole tar, or it holds files of another sample.
    """
    members: dict[str, bytes] = {}
    try:
        for name, content in tar_members(data):
            if not name.startswith(key + "."):
                raise DamagedError("tar-broken", f"{name!r} is no file of this sample")
            if members.setdefault(name[len(key) + 1 :], content) is not content:
                raise DamagedError("tar-broken", f"{name!r} is there twice")
    except ValueError as error:
        raise DamagedError("tar-broken", str(error)) from error
    return members
