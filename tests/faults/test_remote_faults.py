"""Downloads survive what networks, servers, disks and the scheduler do to them; what cannot be survived is said."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from servers import Fault, Request, Server, content, serving

from dnascale.data.cache import partial_path
from dnascale.data.remote import RemoteFile, RemoteFolder, Retry
from dnascale.errors import DataError, DnascaleError

pytestmark = pytest.mark.faults

PIECE = 64 << 10
SIZE = 300_000
PIECES = 5
#: What a stall test waits; elsewhere no answer of this machine takes nearly as long.
STALL = 0.5
QUICK = Retry(attempts=5, base=0.01, cap=0.05, stall=30)

#: A process of the node: `work(folder, files)` with what it was given, as JSON.
_CHILD = """
import json, os, sys, time
from pathlib import Path
from dnascale.data.remote import RemoteFile, RemoteFolder, Retry
given = json.loads(sys.argv[1])
files = [RemoteFile(*file) for file in given["files"]]
folder = RemoteFolder(given["url"], Path(given["cache"]), given["limit"], piece=65536, deadline=60, retry=Retry(base=0.01, cap=0.1))
def check(file, lease):
    import hashlib
    body = lease.path.read_bytes()
    assert len(body) == file.bytes and hashlib.sha256(body).hexdigest() == file.sha256, file
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    with serving() as home:
        yield home


@pytest.fixture
def open_folder(server: Server, tmp_path: Path) -> Iterator[Callable[..., RemoteFolder]]:
    folders = []

    def opened(url: str = "", **options: Any) -> RemoteFolder:
        options = {"cache": tmp_path / "cache", "retry": QUICK, "piece": PIECE, "deadline": 30, **options}
        folders.append(RemoteFolder(url or f"{server.url}/set", **options))
        return folders[-1]

    yield opened
    for folder in folders:
        folder.close()


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process of the node that runs `code`; none outlives the test."""
    children: list[subprocess.Popen[str]] = []

    def started(code: str, files: list[RemoteFile], limit: int | None = None) -> subprocess.Popen[str]:
        given = {
            "url": f"{server.url}/set",
            "cache": str(tmp_path / "cache"),
            "limit": limit,
            "files": [(file.name, file.bytes, file.sha256) for file in files],
        }
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", _CHILD + code, json.dumps(given)]
        children.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True))
        return children[-1]

    yield started
    for child in children:
        child.kill()
        child.communicate()


def finished(child: subprocess.Popen[str]) -> None:
    output, error = child.communicate(timeout=60)
    assert child.returncode == 0, output + error


def read(folder: RemoteFolder, file: RemoteFile) -> bytes:
    with folder.lease(file) as lease:
        return lease.path.read_bytes()


def wait_until(done: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def s3_error(status: int, code: str, **headers: str) -> Fault:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
    return Fault(str(status), headers, body.encode())


@pytest.fixture
def bucket(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server as what s3:// reads from, with the standard variables."""
    pytest.importorskip("s3fs")
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "hunter2", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    return server


# One fault


@pytest.mark.parametrize(
    ("kind", "more_bytes"),
    [
        ("500", 0), ("502", 0), ("503", 0), ("504", 0), ("408", 0), ("425", 0), ("429", 0), ("416", 0), ("garbled", 0),
        ("cut", PIECE // 2), ("short", PIECE // 2), ("html", 77), ("flip", SIZE), ("whole", PIECE),
    ],
)  # fmt: skip
def test_http_faults_are_survived(
    kind: str, more_bytes: int, server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    file = server.add("a.tar")
    server.script("/set/a.tar", "", kind)
    folder = open_folder()
    assert read(folder, file) == content(SIZE, "a.tar")
    assert [request.fault for request in server.requests].count(kind) == 1
    wait_until(lambda: server.sent == SIZE + more_bytes)  # a fault costs one piece; wrong bytes cost the file
    assert len(server.requests) == {"flip": 2 * PIECES, "whole": 2}.get(kind, PIECES + 1)
    if kind != "cut":  # how much of a cut answer came is not known
        assert folder.bytes_fetched == server.sent


def test_a_stalled_answer_is_given_up(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    file = server.add("a.tar")
    server.script("/set/a.tar", "", "stall", "stall")
    began = time.monotonic()
    assert read(open_folder(retry=Retry(base=0.01, stall=STALL)), file) == content(SIZE, "a.tar")
    assert 2 * STALL < time.monotonic() - began < 10
    assert [request.fault for request in server.requests].count("stall") == 2


@pytest.mark.parametrize(
    "fault",
    [
        s3_error(503, "SlowDown"), s3_error(500, "InternalError"), s3_error(400, "RequestTimeout"), Fault("502"),
        Fault("cut"), Fault("short"), Fault("flip"), Fault("whole"),
    ],
    ids=lambda fault: fault.kind,
)  # fmt: skip
def test_s3_faults_are_survived(fault: Fault, bucket: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    file = bucket.add("a.tar", root="/bucket/set")
    bucket.script("/bucket/set/a.tar", "", fault)
    assert read(open_folder("s3://bucket/set"), file) == content(SIZE, "a.tar")
    # One request for one attempt: nobody below us tries again.
    assert len(bucket.requests) == {"flip": 2 * PIECES, "whole": 2}.get(fault.kind, PIECES + 1)


def test_a_stall_and_a_retry_after_of_s3(bucket: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    file = bucket.add("a.tar", root="/bucket/set")
    bucket.script("/bucket/set/a.tar", s3_error(503, "SlowDown", **{"Retry-After": "1"}), "stall")
    assert read(open_folder("s3://bucket/set", retry=Retry(base=0.001, stall=0.6)), file) == content(SIZE, "a.tar")
    slow, stalled, third = bucket.requests[:3]
    assert stalled.at - slow.at >= 1
    assert third.at - stalled.at >= 0.5


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """The URL of a server that is S3 for all a client can tell."""
    server = pytest.importorskip("moto.server")
    host = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    host.start()
    yield "http://{}:{}".format(*host.get_host_and_port())
    host.stop()


@pytest.mark.parametrize("how", ["environment", "client_kwargs"])
def test_a_real_s3_server(
    how: str, moto: str, monkeypatch: pytest.MonkeyPatch, bucket: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    import fsspec.config

    boto3 = pytest.importorskip("boto3")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    if how == "environment":
        monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    else:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"client_kwargs": {"endpoint_url": moto}})
    name, body = f"genomes-{how[:3]}", content(SIZE)
    client = boto3.client("s3", endpoint_url=moto)
    client.create_bucket(Bucket=name)
    client.put_object(Bucket=name, Key="set/train/a.tar", Body=body)
    client.put_object(Bucket=name, Key="set/dataset.json", Body=b"{}")
    folder = open_folder(f"s3://{name}/set")
    file = RemoteFile("train/a.tar", SIZE, hashlib.sha256(body).hexdigest())
    folder.prefetch([file])
    assert read(folder, file) == body
    assert read(folder, RemoteFile("dataset.json", None, None)) == b"{}"
    assert folder.bytes_fetched == SIZE + 2
    with pytest.raises(DataError, match=r"set/b\.tar could not be downloaded in 1 attempt: HTTP 404 .*NoSuchKey"):
        folder.lease(RemoteFile("b.tar", 3, None))
    with pytest.raises(DataError, match=r"in 1 attempt: HTTP 404 .*NoSuchBucket"):
        open_folder("s3://no-such-bucket/set").lease(file)


# Giving up


@pytest.mark.parametrize(
    ("kind", "words", "advice"),
    [
        ("404", "not found", "check the URL"), ("410", "HTTP 410 Gone", "check the URL"),
        ("401", "HTTP 401 Unauthorized", "check the credentials"), ("403", "HTTP 403 Forbidden", "check the credentials"),
        ("400", "HTTP 400 Bad Request", "check the URL"),
    ],
)  # fmt: skip
def test_what_cannot_pass_is_said_at_once(
    kind: str, words: str, advice: str, server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    file = server.add("a.tar")
    server.script("/set/a.tar", *[kind] * 9)
    with pytest.raises(DataError) as caught:
        open_folder().lease(file)
    assert f"{server.url}/set/a.tar could not be downloaded in 1 attempt: {words}" in str(caught.value)
    assert advice in str(caught.value)
    assert caught.value.exit_code == 3
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "RequestTimeTooSkewed"])
def test_a_denial_of_s3_is_said_at_once_with_its_code(
    code: str, bucket: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    bucket.script("/bucket/set/a.tar", *[s3_error(403, code)] * 9)
    with pytest.raises(
        DataError, match=rf"in 1 attempt: HTTP 403 Forbidden \({code}\).*check the credentials"
    ) as caught:
        open_folder("s3://bucket/set").lease(bucket.add("a.tar", root="/bucket/set"))
    assert len(bucket.requests) == 1
    assert "hunter2" not in str(caught.value)


def test_s3_without_credentials_is_said_at_once(
    bucket: Server, open_folder: Callable[..., RemoteFolder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"in 1 attempt: NoCredentialsError.*check the credentials"):
        open_folder("s3://bucket/set").lease(RemoteFile("a.tar", 3, None))
    assert not bucket.requests


def test_giving_up_names_the_url_the_attempts_and_what_they_met(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    file = server.add("a.tar")
    server.script("/set/a.tar", "500", "html", "html", "cut", *["503"] * 9)
    with pytest.raises(DataError) as caught:
        open_folder().lease(file)
    for part in (
        f"{server.url}/set/a.tar",
        "in 5 attempts",
        "an HTML page",
        "ClientPayloadError",
        "HTTP 503 Service",
        "kept",
    ):
        assert part in str(caught.value)
    assert "HTTP 500" not in str(caught.value)  # the last three kinds are enough
    assert len(server.requests) == 5
    server.faults.clear()
    assert read(open_folder(), file) == content(SIZE, "a.tar")


def test_a_server_that_is_not_there(open_folder: Callable[..., RemoteFolder]) -> None:
    with pytest.raises(DataError, match=r"in 5 attempts: ClientConnectorError.*check the network"):
        open_folder("http://127.0.0.1:9/set").lease(RemoteFile("a.tar", 3, None))


def test_progress_starts_the_count_of_attempts_again(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    file = server.add("a.tar")
    server.script("/set/a.tar", *["500", "503", ""] * PIECES)
    assert read(open_folder(retry=Retry(attempts=3, base=0.01)), file) == content(SIZE, "a.tar")
    assert len(server.requests) == 3 * PIECES


def test_wrong_bytes_are_fetched_twice_not_more(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    file = server.add("a.tar")
    server.files["/set/a.tar"] = content(SIZE, "another version")
    folder = open_folder()
    with pytest.raises(
        DataError, match=r"a\.tar could not be downloaded in 2 attempts: .*SHA-256.*upload the data set again"
    ):
        folder.lease(file)
    assert server.sent == 2 * SIZE
    assert not (folder.folder / "a.tar").exists()


def test_the_deadline_ends_it(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    server.always = lambda _: Fault("503")
    began = time.monotonic()
    with pytest.raises(DataError, match=r"could not be downloaded in 0\.5 s \(\d+ attempts\): HTTP 503"):
        open_folder(deadline=0.5, retry=Retry(attempts=10**6, base=0.02, cap=0.02)).lease(server.add("a.tar"))
    assert 0.3 < time.monotonic() - began < 5
    server.always = lambda _: Fault("stall")
    with pytest.raises(DataError, match=r"could not be downloaded in 0\.5 s \(1 attempt\): no answer"):
        open_folder(deadline=0.5).lease(server.add("b.tar"))
    server.always = lambda _: Fault("429", {"Retry-After": "3600"})
    with pytest.raises(DataError, match=r"could not be downloaded in 30 s \(1 attempt\): HTTP 429"):
        open_folder().lease(server.add("c.tar"))
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("status", "as_date"), [("429", False), ("503", True)])
def test_a_server_is_left_alone_as_long_as_it_asks(
    status: str, as_date: bool, server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    file = server.add("a.tar")
    until = int(time.time() + 1.5)
    value = formatdate(until, usegmt=True) if as_date else "1"
    server.script("/set/a.tar", Fault(status, {"Retry-After": value}))
    assert read(open_folder(retry=Retry(base=0.001)), file) == content(SIZE, "a.tar")
    first, second = server.requests[:2]
    assert second.at >= (until if as_date else first.at + 1)


# Many faults


def test_every_fifth_answer_at_random_over_forty_files(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    kinds = ["500", "503", "429", "garbled", "cut", "short", "html", "whole", "flip", "stall"]
    seen: dict[str, int] = {}

    def now_and_then(request: Request) -> Fault | None:
        # By path and count, so that threads in any order get the same faults.
        count = seen[request.path] = seen.get(request.path, 0) + 1
        chance = random.Random(f"3:{request.path}:{count}")
        return Fault(chance.choice(kinds)) if chance.random() < 0.2 else None

    files = [server.add(f"train/shard-{number:06d}.tar", 100_000 + 4_000 * number) for number in range(40)]
    server.always = now_and_then
    folder = open_folder(retry=Retry(base=0.01, cap=0.05, stall=0.4), piece=PIECE // 2)
    folder.prefetch(files)
    for file in files:
        assert read(folder, file) == content(file.bytes or 0, file.name)
    met = {request.fault for request in server.requests}
    assert met == {"", *kinds}
    assert sum(bool(request.fault) for request in server.requests) > 0.15 * len(server.requests)
    assert not list(folder.folder.rglob("*.partial"))


# Processes


def test_after_kill_9_the_next_process_goes_on_from_the_byte_where_it_ended(
    server: Server, start: Callable[..., subprocess.Popen[str]], open_folder: Callable[..., RemoteFolder]
) -> None:
    size = 40 * PIECE + 17
    file = server.add("a.tar", size)
    server.delay = 0.02
    folder = open_folder()
    partial = partial_path(folder.folder / "a.tar", size)
    child = start("folder.lease(files[0])", [file])
    wait_until(lambda: partial.exists() and partial.stat().st_size >= 3 * PIECE)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = partial.stat().st_size
    assert left < size
    assert not (folder.folder / "a.tar").exists()
    server.delay = 0
    before = len(server.requests)
    assert read(folder, file) == content(size, "a.tar")
    assert server.requests[before].start == left
    assert folder.bytes_fetched == size - left


def test_four_processes_that_want_the_same_files_fetch_each_byte_once(
    server: Server, start: Callable[..., subprocess.Popen[str]]
) -> None:
    files = [server.add(f"train/shard-{number:06d}.tar") for number in range(6)]
    server.delay = 0.02
    code = "folder.prefetch(files[2:4])\nfor file in files:\n    with folder.lease(file) as lease: check(file, lease)"
    children = [start(code, files[turn:] + files[:turn]) for turn in range(4)]
    for child in children:
        finished(child)
    assert {file.name: sum(request.sent for request in server.of(f"/set/{file.name}")) for file in files} == {
        file.name: SIZE for file in files
    }
    assert len(server.requests) == 6 * PIECES


def test_three_processes_keep_the_limit_at_all_times(
    server: Server, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    files = [server.add(f"train/shard-{number:06d}.tar") for number in range(20)]
    server.delay = 0.002
    limit = 5 * SIZE + 10
    code = """
for number, file in enumerate(files):
    folder.prefetch(files[number : number + 3])
    with folder.lease(file) as lease:
        check(file, lease)
        time.sleep(0.005)
        check(file, lease)
folder.close()
"""
    children = [start(code, files[turn:] + files[:turn], limit) for turn in (0, 7, 13)]
    most = samples = 0
    while any(child.poll() is None for child in children):
        # A partial file counts with all the bytes that it will have.
        used = 0
        for path in (path for path in (tmp_path / "cache").rglob("*.*") if path.suffix != ".lock"):
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            used += int(path.name.split(".")[-2]) if path.suffix == ".partial" else size
        most, samples = max(most, used), samples + 1
    for child in children:
        finished(child)
    assert samples > 20
    assert 4 * SIZE < most <= limit


def test_a_lease_ends_with_its_process_however_that_dies(
    server: Server, start: Callable[..., subprocess.Popen[str]], open_folder: Callable[..., RemoteFolder]
) -> None:
    a, b = server.add("a.tar"), server.add("b.tar")
    child = start("lease = folder.lease(files[0]); print('leased', flush=True); time.sleep(60)", [a])
    assert child.stdout
    assert child.stdout.readline() == "leased\n"
    folder = open_folder(limit=SIZE)
    with pytest.raises(DataError, match="does not fit"):
        folder.lease(b)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert read(folder, b) == content(SIZE, "b.tar")
    assert not (folder.folder / "a.tar").exists()


def test_a_full_disk_is_said_and_leaves_nothing(
    server: Server, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    file = server.add("a.tar")
    code = f"""
import resource, signal
from dnascale.errors import SpaceError
resource.setrlimit(resource.RLIMIT_FSIZE, ({PIECE + 100}, {PIECE + 100}))
try:
    folder.lease(files[0])
except SpaceError as error:
    print(error)
"""
    child = start(code, [file])
    output, error = child.communicate(timeout=60)
    assert "no space left to write" in output, error
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size]


def test_a_waiting_process_says_so_at_its_deadline(
    server: Server, start: Callable[..., subprocess.Popen[str]], open_folder: Callable[..., RemoteFolder]
) -> None:
    file = server.add("a.tar")
    server.always = lambda _: Fault("stall")
    start("folder.lease(files[0])", [file])
    wait_until(lambda: bool(server.requests))
    with pytest.raises(DnascaleError, match=r"in 0\.5 s .*another download of it is still under way"):
        open_folder(deadline=0.5).lease(file)
    assert len(server.requests) == 1
