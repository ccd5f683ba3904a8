"""Bytes of a file behind a URL, through fsspec: what can go wrong, when to ask again, and when to give up."""

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from dnascale.errors import DataError, UsageError

POLL = 0.02  # seconds between looks at a lock of another process

SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_URL = re.compile(SCHEME.pattern + r"[^\s'\"<>]*")  # inside a sentence
#: user:password@, also where the password holds a slash that should have been written %2F; a port is no password.
_LOGIN = re.compile(r"(?<=://)(?:[^/?#@:\[\s]+:(?!\d*/)\S*@|[^/?#\s]*@)")
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}

_LATER = "check the network and the server, then run the same command again; what has arrived is kept"
_ABSENT = "check the URL, or upload what should be there again"
_DENIED = "check the credentials, and that they may read this file"
DAMAGED = "it is damaged, or of another version of the data set; upload the data set again"
_REFUSED = "check the URL and how its storage is set up"


@dataclass(frozen=True)
class Retry:
    """When a download that fails is tried again: after a random part of min(cap, base * 2^k) seconds."""

    attempts: int = 8  # that fail one after the other; a piece that arrives starts the count again
    base: float = 0.5
    cap: float = 30.0
    stall: float = 60.0  # seconds that one piece may take


@dataclass(frozen=True)
class Fault:
    """What went wrong with one attempt. With advice, asking again is of no use."""

    words: str
    advice: str = ""
    wait: float = 0.0  # seconds that the server asks to be left alone


class Attempts:
    """How often a file was tried, what that met, and the time that is left. Raises DataError when it is enough.

    `later` is the advice where another attempt might have helped.
    """

    def __init__(self, url: str, retry: Retry, deadline: float, closed: threading.Event, later: str = _LATER) -> None:
        self.url = url
        self._later = later
        self._retry = retry
        self._deadline = deadline
        self._end = time.monotonic() + deadline
        self._closed = closed
        self._all = 0
        self._row = 0
        self._met: dict[str, None] = {}

    def seconds(self) -> float:
        """The time that the next piece may take."""
        self._pause(0)
        if (left := self._end - time.monotonic()) <= 0:
            raise self._error(self._later, late=True)
        return min(left, self._retry.stall)

    def progress(self) -> None:
        self._row = 0

    def failed(self, fault: Fault) -> None:
        """Waits before the next attempt."""
        self._all += 1
        self._row += 1
        self._met.pop(fault.words, None)
        self._met[fault.words] = None
        if fault.advice or self._row >= self._retry.attempts:
            raise self._error(fault.advice or self._later)
        longest = min(self._retry.cap, self._retry.base * 2 ** (self._row - 1))
        # Not from the seeded generator: it is the same in every process, and they would all ask at the same moment.
        wait = max(random.SystemRandom().uniform(0, longest), fault.wait)
        if time.monotonic() + wait > self._end:
            raise self._error(self._later, late=True)
        if self._row > 1:  # one that fails is nothing unusual; of more, a person who waits should hear
            nth = f"attempt {self._row + 1} of {self._retry.attempts}"
            logging.getLogger(__name__).warning("%s: %s; %s in %.0f s", self.url, fault.words, nth, wait)
        self._pause(wait)

    def until(self, done: Callable[[], bool], reason: str, every: float = POLL) -> None:
        """Waits for what other processes do; `reason` says what keeps it from being done."""
        while not done():
            if time.monotonic() > self._end:
                self._met[reason] = None
                raise self._error(self._later, late=True)
            self._pause(every)

    def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise DataError(f"{self.url} was not downloaded, because the data set was closed: open it again.")

    def _error(self, advice: str, late: bool = False) -> DataError:
        attempts = f"{self._all} attempt{'s' * (self._all != 1)}"
        within = f"{self._deadline:g} s ({attempts})" if late else attempts
        met = "; ".join(list(self._met)[-3:]) or "it is arriving too slowly"
        return DataError(f"{self.url} could not be downloaded in {within}: {met}. The run needs this file: {advice}.")


class Source:
    """The file system behind a URL, opened when first read."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._files: Any = None
        self._lock = threading.Lock()
        self._protocol = url.partition("://")[0].lower()
        self.bytes = 0

    def address(self, name: str) -> str:
        """The URL of a file, with the credentials that the data set's URL holds."""
        if self._protocol in ("http", "https"):
            base, mark, query = self._url.partition("?")
            return f"{base.rstrip('/')}/{quote(name)}{mark}{query}"
        return f"{self._url.rstrip('/')}/{name}"

    def read(self, name: str, start: int | None, end: int | None, seconds: float) -> bytes:
        """Bytes [start, end) of a file, or what the server sends instead. Raises whatever the transport raises."""
        from fsspec.asyn import sync

        with self._lock:
            self._files = files = self._files or self._open()
        path = files._strip_protocol(self.address(name))
        if files.async_impl:
            content = sync(files.loop, files._cat_file, path, start=start, end=end, timeout=seconds)
        else:  # has a time limit of its own, or none
            options = {"cache_type": "none"} if self._protocol == "hf" else {}  # it would read ahead, for nothing
            content = files.cat_file(path, start, end, **options)
        with self._lock:
            self.bytes += len(content)
        return bytes(content)

    def _open(self) -> Any:
        from fsspec.config import apply_config
        from fsspec.core import url_to_fs
        from fsspec.registry import get_filesystem_class

        options: dict[str, dict[str, Any]] = {}
        if self._protocol in ("http", "https"):
            # Ranges are of the file's own bytes; and proxies are where everybody looks for them.
            options = {"headers": {"Accept-Encoding": "identity"}, "client_kwargs": {"trust_env": True}}
        elif self._protocol in ("s3", "s3a"):
            options = {"config_kwargs": {"retries": {"total_max_attempts": 1}}}
        try:
            given = apply_config(get_filesystem_class(self._protocol), {})  # the user's own settings
            merged = {key: {**given.get(key, {}), **value} for key, value in options.items()}
            files = url_to_fs(self._url, skip_instance_cache=True, **merged)[0]
        except ImportError:
            package = _PACKAGES.get(self._protocol, "another package")
            raise UsageError(f"reading {self._protocol}:// needs {package}: pip install 'dnascale[cloud]'") from None
        except ValueError as error:
            if "Protocol not known" not in str(error):
                raise
            raise UsageError(
                f"{without_secrets(self._url)} cannot be read, {self._protocol}:// is not known: use https://, s3://, gs:// "
                "or hf://."
            ) from None
        if hasattr(files, "retries"):
            files.retries = 1  # we are the ones who try again, and who know how long the server wants to be left alone
        return files


def fault_of(error: Exception, stall: float) -> Fault:
    """What an error of a transport means, whichever of fsspec's it is."""
    causes = list(_causes(error))
    status, code, headers = next((answer for cause in causes if (answer := _answer(cause))[0]), (None, "", {}))
    text = _URL.sub(lambda url: without_secrets(url[0]), str(error))
    words = f"{type(error).__name__}: {' '.join(text.split())}"[:300].rstrip(": ")
    if status:
        with suppress(ValueError):
            words = f"HTTP {status} {HTTPStatus(status).phrase}"
        words += f" ({code})" * bool(code)
    # A garbled or cut answer, which aiohttp gives a status of its own.
    if any(type(cause).__module__ == "aiohttp.http_exceptions" for cause in causes):
        return Fault(words)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return Fault(words if status else "not found", _ABSENT)
    # gcsfs says 403 in words alone; the names below are botocore's, google.auth's, ssl's and aiohttp's.
    kinds = {type(cause).__name__ for cause in causes}
    if (
        isinstance(error, PermissionError)
        or status in (401, 403)
        or str(error).startswith("Forbidden")
        or kinds & {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
    ):
        return Fault(words, _DENIED)
    if code in ("RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"):
        return Fault(words, wait=_retry_after(headers))
    if status:
        # 416: the file is shorter than what is known of it, which a stale mirror may get over.
        passing = status in (408, 416, 425, 429) or status >= 500
        return Fault(words, "" if passing else _REFUSED, _retry_after(headers) if status in (429, 503) else 0.0)
    if kinds & {"SSLCertVerificationError", "ClientConnectorCertificateError"}:
        return Fault(words, "check the clock and the certificates of this machine")
    if kinds & {"ParamValidationError", "ProfileNotFound", "ConfigParseError"} or isinstance(
        error, ValueError | TypeError | NotImplementedError | AttributeError | ImportError | IsADirectoryError
    ):
        return Fault(words, _REFUSED)
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return Fault(f"no answer within {stall:g} s")
    return Fault(words)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _answer(error: BaseException) -> tuple[int | None, str, Mapping[str, str]]:
    """HTTP status, error code and headers in an error of botocore, of httpx (Hugging Face), of aiohttp or gcsfs."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        meta = response.get("ResponseMetadata", {})
        return meta.get("HTTPStatusCode"), response.get("Error", {}).get("Code", ""), meta.get("HTTPHeaders", {})
    if response is not None:
        return response.status_code, "", response.headers
    status = getattr(error, "code" if type(error).__name__ == "HttpError" else "status", None)
    return (status if isinstance(status, int) else None), "", getattr(error, "headers", None) or {}


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that the server asks to wait: given as seconds or as a date."""
    value = str(headers.get("Retry-After") or headers.get("retry-after") or "0")
    with suppress(ValueError, TypeError):
        if value.strip().isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0


def without_secrets(url: str) -> str:
    """The URL without user, password, query and fragment: what may be printed."""
    return re.sub(r"[?#].*", "", _LOGIN.sub("", url), flags=re.DOTALL)
