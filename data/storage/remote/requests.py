"""Requests for files below a URL (by fsspec), with their failures sorted and waits between tries.

Every request has its own time limit, so a server that accepts a request and sends nothing costs no more than that.
Failures are of two kinds: temporary ones (`PassingError`: no connection, cut off, 429, 5xx, too slow) and those that
say something about the file or the account (`OSError` that says what to do: 401, 403, 404, other 4xx).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import threading
import time
from typing import Any

import aiohttp
import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.exceptions import FSTimeoutError

from common.retry import StorageAwayError, growing_delays

logger = logging.getLogger(__name__)

_FIRST_DELAY_S, _MAX_DELAY_S = 0.2, 15.0
_TELL_AFTER = 3
"""Failures in a row before a warning: single ones are normal."""
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_PASSING_STATUS = frozenset({408, 425, 429})
_PASSING_ERRNO = frozenset({errno.EBUSY, errno.EREMOTEIO, errno.EIO})
"""What s3fs makes of SlowDown and ServiceUnavailable, of InternalError, and of answers that it does not know."""
_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "DefaultCredentialsError"}
    | {"RefreshError", "TokenRetrievalError", "ProfileNotFound", "SSOTokenLoadError", "UnauthorizedSSOTokenError"}
)
_LIBRARIES = ("aiohttp", "botocore", "aiobotocore", "gcsfs", "google", "urllib3", "ssl")


class PassingError(Exception):
    """A request failed in a way that another one may not."""


class Remote:
    """Files of one set. Picklable; each process makes its own connections; safe for threads."""

    def __init__(self, root: str, stall_s: float) -> None:
        """Requests nothing yet; `stall_s`: time limit of a request, seconds."""
        self.root = root.rstrip("/")
        self._stall_s = stall_s
        self._connected: tuple[int, Any, str] | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Remote], tuple[str, float]]:
        """Connections mean nothing in another process."""
        return Remote, (self.root, self._stall_s)

    def piece(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file: fewer behind its end; more, from its first byte on, from a server that
        does not know ranges.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read, with the reason.
            PassingError: worth another try.
        """  # noqa: D205
        return self._request(name, start=start, end=stop)

    def whole(self, name: str) -> bytes:
        """A small file; raises as `piece`."""
        return self._request(name)

    def _request(self, name: str, **limits: int) -> bytes:
        system, path = self._system()
        if isinstance(system, AsyncFileSystem):
            limits["timeout"] = self._stall_s  # type: ignore[assignment]
        try:
            return bytes(system.cat_file(f"{path}/{name}", **limits))
        except Exception as error:
            if "start" in limits and _status(error) == 416:  # asked for bytes behind the end
                return b""
            raise _explained(error, f"{self.root}/{name}", self._stall_s) from error

    def _system(self) -> tuple[Any, str]:
        with self._lock:
            # After a fork, the parent's connections would be shared by both processes.
            if self._connected is None or self._connected[0] != os.getpid():
                self._connected = (os.getpid(), *_connect(self.root))
            return self._connected[1:]


def _connect(root: str) -> tuple[Any, str]:
    """File system and path of a URL, connected.

    Raises:
        OSError: the package for it is not installed, or there is no such protocol.
    """
    protocol = root.partition("://")[0].lower()
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        given = fsspec.config.conf.get(protocol, {})
        options["headers"] = {"Accept-Encoding": "identity", **given.get("headers", {})}
        # Limits are per request and ours; proxies and ~/.netrc as for other programs.
        client = {"trust_env": True, "timeout": aiohttp.ClientTimeout(total=None)}
        options["client_kwargs"] = client | given.get("client_kwargs", {})
    try:
        system, path = fsspec.core.url_to_fs(root, **options)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        remedy = f"pip install 'tandem-pretrain[{extra}]'" if extra else str(error)
        raise OSError(f"{root}: reading {protocol}:// needs a package that is not installed; {remedy}") from error
    except ValueError as error:
        raise OSError(f"{root}: no such protocol; expected a folder, s3://, gs:// or https:// ({error})") from error
    if isinstance(system, AsyncFileSystem) and hasattr(system, "set_session"):
        try:
            sync(system.loop, system.set_session)  # now: two threads at their first request would each make one
        except Exception as error:
            raise _explained(error, root, 0.0) from error
    return system, str(path).rstrip("/")


# ---- failures
def _status(error: BaseException) -> int | None:
    """HTTP status behind an error of aiohttp, gcsfs or botocore."""
    for cause in (error, error.__cause__):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(cause, "status", None) or getattr(cause, "code", None)
        if isinstance(status, int):
            return status
        if isinstance(status, str) and status.isdigit():
            return int(status)
    return None


def _explained(error: Exception, url: str, stall_s: float) -> Exception:
    """An error of fsspec as an `OSError` that says what to do, as `PassingError`, or unchanged if it is a bug."""
    name, status = type(error).__name__, _status(error)
    said = f"{str(error) or name}" + (f", HTTP {status}" if status and str(status) not in str(error) else "")
    if isinstance(error, (FSTimeoutError, asyncio.TimeoutError)):
        return PassingError(f"no answer within {stall_s:g} s (data.cache.stall_s)")
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        bucket = "bucket" in str(error).lower()
        return FileNotFoundError(f"{url}: {'no such bucket' if bucket else 'no such file'} ({said})")
    if name == "ParamValidationError":
        return OSError(f"{url}: {said}")
    if name in _NO_CREDENTIALS:
        return PermissionError(f"{url}: no credentials were found, or they are incomplete ({said}); docs/streaming.md")
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(
            f"{url}: access is refused ({said}); check the credentials, and that they may read this place"
        )
    if status is not None and 400 <= status < 500 and status not in _PASSING_STATUS:
        return OSError(f"{url}: the server refuses the request ({said})")
    if isinstance(error, OSError):
        definite = error.errno is not None and error.errno not in _PASSING_ERRNO and status is None and not _net(error)
        return OSError(f"{url}: {said}") if definite else PassingError(f"{name}: {said}")
    if type(error).__module__.partition(".")[0] in _LIBRARIES or status is not None:
        return PassingError(f"{name}: {said}")
    return error


def _net(error: OSError) -> bool:
    """Of a connection (no such host, refused, reset), not of a file."""
    return (
        isinstance(error, (aiohttp.ClientError, ConnectionError, TimeoutError)) or type(error).__module__ != "builtins"
    )


class BackOff:
    """Waits between tries, longer each time, with jitter, so that a thousand readers do not come back at once.

    Gives up when nothing has come for too long.
    """

    def __init__(self, where: str, wait_s: float, remedy: str) -> None:
        """Begin now; give up `wait_s` seconds after the last progress, with `where` and `remedy` in the message."""
        self._where, self._wait_s, self._remedy = where, wait_s, remedy
        self._random = random.Random()  # its own: the global one belongs to the training
        self.progressed()

    def progressed(self) -> None:
        """Something came."""
        self._since, self._failures = time.monotonic(), 0
        self._delays = growing_delays(2 * _FIRST_DELAY_S, _MAX_DELAY_S)

    def after(self, error: Exception) -> None:
        """Wait before the next try.

        Raises:
            StorageAwayError: it has been too long.
        """
        waited = time.monotonic() - self._since
        if waited >= self._wait_s:
            raise StorageAwayError(
                f"{self._where} cannot be read ({error}) and did not come back in {self._wait_s / 60:g} min; "
                f"{self._remedy}"
            ) from error
        self._failures += 1
        if self._failures == _TELL_AFTER:
            logger.warning("%s cannot be read (%s); trying again", self._where, error)
        longest = next(self._delays)
        time.sleep(min(self._random.uniform(longest / 2, longest), max(self._wait_s - waited, 0.01)))
