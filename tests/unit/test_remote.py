"""A data set behind a URL: fetched once, checked, leased, prefetched, and kept within the limit of the cache."""

import gc
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import pytest
from servers import HTML, Server, content, serving

from dnascale.data import remote, transport
from dnascale.data.cache import Cache, Lock, lock_path, partial_path
from dnascale.data.remote import RemoteFile, RemoteFolder, Retry, default_cache, is_remote
from dnascale.errors import DataError, UsageError

PIECE = 64 << 10
SIZE = 300_000
QUICK = Retry(attempts=4, base=0.01, cap=0.05, stall=30)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as home:
        yield home


@pytest.fixture
def open_folder(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., RemoteFolder]]:
    """Opens the server's data set; options over the defaults. Every call is like another process of the node."""
    folders = []
    # Quicker than in use, where looking for room costs a scan of the cache.
    monkeypatch.setattr(remote, "_PATIENCE", 0.2)
    monkeypatch.setattr(remote, "_LOOK", 0.05)

    def opened(url: str = "", **options: object) -> RemoteFolder:
        chosen = {"cache": tmp_path / "cache", "retry": QUICK, "piece": PIECE, "deadline": 20, **options}
        folders.append(RemoteFolder(url or f"{server.url}/set", **chosen))  # type: ignore[arg-type]
        return folders[-1]

    yield opened
    for folder in folders:
        folder.close()


def read(folder: RemoteFolder, file: RemoteFile) -> bytes:
    with folder.lease(file) as lease:
        return lease.path.read_bytes()


def wait_until(done: Callable[[], bool], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def here(folder: RemoteFolder) -> set[str]:
    return {path.name for path in folder.folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://a.b/c", True), ("s3://bucket/x", True), ("hf://datasets/a/b", True), ("memory://x", True),
        ("data/human", False), ("/data/human", False), ("C:\\data", False), ("C://data", False), ("a:b", False),
    ],
)  # fmt: skip
def test_a_url_is_told_from_a_path(location: str, expected: bool) -> None:
    assert is_remote(location) is expected


def test_the_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNASCALE_CACHE", "/scratch/dna")
    assert default_cache() == Path("/scratch/dna")
    monkeypatch.delenv("DNASCALE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert default_cache() == Path("/xdg/dnascale")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache/dnascale"


def test_importing_it_does_not_import_fsspec() -> None:
    code = "import dnascale.data.remote, sys; sys.exit('fsspec' in sys.modules or 'aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_file_is_fetched_in_pieces_once_and_appears_whole(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    file = server.add("train/shard-000000.tar")
    folder = open_folder()
    with folder.lease(file) as lease:
        assert lease.path == folder.folder / "train/shard-000000.tar"
        assert lease.path.read_bytes() == content(SIZE, file.name)
    edges = [*range(0, SIZE, PIECE), SIZE]
    assert [(request.start, request.end) for request in server.requests] == list(itertools.pairwise(edges))
    assert all(request.headers["Accept-Encoding"] == "identity" for request in server.requests)
    assert (folder.bytes_fetched, folder.files_fetched) == (SIZE, 1)
    assert read(folder, file) == read(open_folder(), file) == content(SIZE, file.name)
    assert server.sent == SIZE
    assert not list(folder.folder.rglob("*.partial"))


def test_one_file_is_leased_twice_in_a_process_and_closed_in_any_order(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    file, other = server.add("a.tar"), server.add("b.tar")
    folder = open_folder(limit=SIZE)
    first, second = folder.lease(file), folder.lease(file)
    first.close()
    first.close()
    with pytest.raises(DataError, match="does not fit"):
        folder.lease(other)
    second.close()
    assert read(folder, other) == content(SIZE, "b.tar")
    assert here(folder) == {"b.tar"}


def test_a_file_of_another_size_under_its_name_is_fetched_anew(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    file = server.add("a.tar")
    folder = open_folder()
    read(folder, file)
    (folder.folder / "a.tar").write_bytes(b"cut")
    assert read(folder, file) == content(SIZE, "a.tar")
    assert server.sent == 2 * SIZE


def test_a_file_without_a_known_digest_is_checked_by_size(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    server.add("a.tar")
    assert read(open_folder(), RemoteFile("a.tar", SIZE, None)) == content(SIZE, "a.tar")
    with pytest.raises(DataError, match=r"37,856 bytes where 65,536 were asked for, .* shorter"):
        read(open_folder(), RemoteFile("a.tar", SIZE + PIECE * 2, None))


def test_an_empty_file(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    assert read(open_folder(), server.add("empty.bin", 0)) == b""


def test_dataset_json_is_fetched_once_by_processes_that_start_together_and_anew_by_a_later_run(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    server.files["/set/dataset.json"] = b'{"old": 1}'
    file = RemoteFile("dataset.json", None, None)
    first = open_folder()
    assert read(first, file) == read(open_folder(), file) == b'{"old": 1}'
    assert len(server.requests) == 1
    assert server.requests[0].start is None
    server.files["/set/dataset.json"] = b'{"new": 22}'
    long_ago = time.time() - remote.FRESH - 1
    os.utime(first.folder / "dataset.json", (time.time(), long_ago))
    assert read(first, file) == b'{"old": 1}'  # one process stays with what it began with
    assert read(open_folder(), file) == b'{"new": 22}'
    assert len(server.requests) == 2


def test_an_html_page_is_not_a_dataset_json(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    server.files["/set/dataset.json"] = HTML
    folder = open_folder()
    with pytest.raises(DataError, match="4 attempts: an HTML page instead of data"):
        folder.lease(RemoteFile("dataset.json", None, None))
    assert not here(folder)


def test_files_and_memory_are_read_like_any_other_url(tmp_path: Path, open_folder: Callable[..., RemoteFolder]) -> None:
    import fsspec

    body = content(SIZE)
    (tmp_path / "set/train").mkdir(parents=True)
    (tmp_path / "set/train/a.tar").write_bytes(body)
    fsspec.filesystem("memory").pipe("/remote-test/train/a.tar", body)
    file = RemoteFile("train/a.tar", SIZE, hashlib.sha256(body).hexdigest())
    for url in (f"file://{tmp_path}/set", "memory://remote-test"):
        folder = open_folder(url)
        assert read(folder, file) == body
        assert folder.bytes_fetched == SIZE
        with pytest.raises(DataError, match=r"absent\.tar could not be downloaded in 1 attempt: not found"):
            folder.lease(RemoteFile("absent.tar", 3, None))


@pytest.mark.parametrize(
    "name", ["../../.bashrc", "/etc/passwd", "train/../../x", ".a.tar.lock", "a//b", "", "a\\..\\b"]
)
def test_a_name_that_leads_out_of_the_data_set_is_refused(
    name: str, tmp_path: Path, open_folder: Callable[..., RemoteFolder]
) -> None:
    folder = open_folder()
    folder.prefetch([RemoteFile(name, 3, None)])
    with pytest.raises(DataError, match="no place inside the data set"):
        folder.lease(RemoteFile(name, 3, None))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "secret_url",
    [
        "{}://reader:hunter2@{}/set?sig=hunter2&x=hunter2#hunter2",
        "{}://hunter2@{}/set/",
        "{}://reader:hun/ter2hunter2@{}/set",
    ],
)
def test_credentials_are_used_but_never_said_nor_part_of_a_name(
    secret_url: str, server: Server, open_folder: Callable[..., RemoteFolder], tmp_path: Path
) -> None:
    url = secret_url.format(*server.url.split("://"))
    plain = open_folder(f"{server.url}/set")
    folder = open_folder(url)
    assert (folder.folder, folder.url) == (plain.folder, plain.url)
    with pytest.raises(DataError) as caught:
        folder.lease(RemoteFile("absent.tar", 3, None))
    server.script("/set/cut.tar", *["403"])
    with pytest.raises(DataError) as denied:
        folder.lease(RemoteFile("cut.tar", 3, None))
    for error in (caught.value, denied.value):
        assert "hunter2" not in str(error)
        assert error.__cause__ is error.__context__ is None
    assert "hunter2" not in "".join(str(path) for path in tmp_path.rglob("*"))
    if "?" in url:
        assert server.requests[0].path == "/set/absent.tar?sig=hunter2&x=hunter2"
        assert server.requests[0].headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://u:hunter2@host:8080/a/b?sig=hunter2#x", "https://host:8080/a/b"),
        ("https://u:hun@ter2@host/a", "https://host/a"), ("https://u:hun/ter2@host/a@b", "https://b"),
        ("https://hunter2@host/a@b", "https://host/a@b"), ("http://host:80/a@b:c", "http://host:80/a@b:c"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"), ("hf://datasets/u/r@main/a", "hf://datasets/u/r@main/a"),
        ("s3://KEY:hun/ter2@bucket/a", "s3://bucket/a"), ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
    ],
)  # fmt: skip
def test_what_is_shown_of_a_url(url: str, shown: str, tmp_path: Path) -> None:
    assert RemoteFolder(url, tmp_path).url == shown


def test_the_users_own_settings_are_kept(
    server: Server, open_folder: Callable[..., RemoteFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec.config

    monkeypatch.setitem(fsspec.config.conf, "http", {"headers": {"Authorization": "Bearer of-news"}})
    read(open_folder(), server.add("a.tar"))
    headers = server.requests[0].headers
    assert (headers["Authorization"], headers["Accept-Encoding"]) == ("Bearer of-news", "identity")


def test_names_are_quoted_in_urls(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    body = content(10)
    server.files["/set/a%20b%23[1].tar"] = server.files["/set/a%20b%23%5B1%5D.tar"] = body
    assert read(open_folder(), RemoteFile("a b#[1].tar", 10, hashlib.sha256(body).hexdigest())) == body


def test_a_missing_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, open_folder: Callable[..., RemoteFolder]
) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UsageError, match=r"reading gs:// needs gcsfs: pip install 'dnascale\[cloud\]'"):
        open_folder("gs://bucket/set").lease(RemoteFile("a.tar", 3, None))
    with pytest.raises(UsageError, match="gopher:// is not known"):
        open_folder("gopher://bucket/set").lease(RemoteFile("a.tar", 3, None))


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, open_folder: Callable[..., RemoteFolder]) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match="choose a cache folder"):
        open_folder(cache=tmp_path / "file").lease(RemoteFile("a.tar", 3, None))


# Prefetching


def test_prefetching_goes_soonest_first_and_a_lease_joins_it(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    files = [server.add(f"{number}.tar") for number in range(4)]
    server.delay = 0.03
    folder = open_folder(downloads=1)
    folder.prefetch(files)
    wait_until(lambda: bool(server.of("/set/0.tar")))
    for file in files:
        assert read(folder, file) == content(SIZE, file.name)
    assert server.sent == 4 * SIZE
    first = [request.path for request in server.requests if request.start == 0]
    assert sorted(first) == [f"/set/{number}.tar" for number in range(4)]
    assert first[0] == "/set/0.tar"


def test_prefetched_files_need_no_request_when_leased(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    files = [server.add(f"{number}.tar") for number in range(6)]
    folder = open_folder()
    folder.prefetch(files)
    wait_until(lambda: len(here(folder)) == 6)
    asked = len(server.requests)
    assert [read(folder, file) for file in files] == [content(SIZE, file.name) for file in files]
    assert len(server.requests) == asked
    assert server.sent == 6 * SIZE


def test_a_new_wish_list_replaces_the_old_one(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    files = [server.add(f"{number}.tar") for number in range(8)]
    server.delay = 0.02
    folder = open_folder(downloads=1)
    folder.prefetch(files[:4])
    wait_until(lambda: bool(server.requests))
    folder.prefetch(files[6:])
    wait_until(lambda: len(here(folder)) == 3)
    time.sleep(0.1)
    assert here(folder) == {"0.tar", "6.tar", "7.tar"}


def test_an_error_of_a_prefetch_surfaces_at_the_lease_and_stops_nothing_else(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    absent, good = RemoteFile("absent.tar", 10, None), server.add("good.tar")
    folder = open_folder(downloads=1)
    folder.prefetch([absent, good])
    wait_until(lambda: here(folder) == {"good.tar"})
    folder.prefetch([absent, good])
    time.sleep(0.2)
    assert len(server.of("/set/absent.tar")) == 1  # it is not asked for again and again
    with pytest.raises(DataError, match=r"absent\.tar could not be downloaded in 1 attempt"):
        folder.lease(absent)


def test_after_close_a_download_stops_at_its_next_piece(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    file = server.add("a.tar", 100 * PIECE)
    server.delay = 0.02
    folder = open_folder()
    folder.prefetch([file])
    wait_until(lambda: len(server.requests) > 2)
    folder.close()
    wait_until(lambda: not any(thread.is_alive() for thread in folder._here.threads))
    asked = len(server.requests)
    assert asked < 90
    with pytest.raises(DataError, match="was closed"):
        folder.lease(file)
    server.delay = 0
    assert read(open_folder(), file) == content(file.bytes or 0, "a.tar")
    assert len(server.requests) == 100 + (server.requests[asked - 1].sent == 0)


# The limit


def test_the_least_recently_leased_goes_first(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    files = {name: server.add(f"{name}.tar") for name in "abcd"}
    folder = open_folder(limit=3 * SIZE)
    for name in "abcab":
        read(folder, files[name])
        time.sleep(0.01)
    read(folder, files["d"])
    assert here(folder) == {"a.tar", "b.tar", "d.tar"}
    read(open_folder(limit=3 * SIZE), files["c"])
    assert here(folder) == {"b.tar", "c.tar", "d.tar"}


def test_a_leased_file_is_never_removed(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    files = [server.add(f"{number}.tar") for number in range(6)]
    folder, other = open_folder(limit=2 * SIZE), open_folder(limit=2 * SIZE)
    with folder.lease(files[0]) as lease:
        for file in files[1:]:
            read(other, file)
            assert lease.path.exists()
    assert server.sent == 6 * SIZE


def test_the_limit_holds_over_all_data_sets_and_touches_nothing_else(
    server: Server, open_folder: Callable[..., RemoteFolder], tmp_path: Path
) -> None:
    mine = [
        tmp_path / "cache/thesis.tex",
        tmp_path / "cache/photos-0123456789ab/cat.jpg",
        tmp_path / "cache/photos/cat.jpg",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(4 * SIZE))
    (tmp_path / "cache/photos/.cat.jpg.lock").touch()
    one, two = server.add("a.tar"), server.add("a.tar", SIZE, "/other")
    first, second = open_folder(limit=SIZE), open_folder(f"{server.url}/other", limit=SIZE)
    read(first, one)
    read(second, two)
    assert here(first) == set()
    assert here(second) == {"a.tar"}
    assert all(path.stat().st_size == 4 * SIZE for path in mine)


def test_a_limit_that_is_too_small_is_said_at_once(server: Server, open_folder: Callable[..., RemoteFolder]) -> None:
    files = [server.add(f"{number}.tar") for number in range(3)]
    small = open_folder(limit=SIZE - 1)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"300,000 bytes\) does not fit .* limit is 299,999 bytes"):
        small.lease(files[0])
    assert time.monotonic() - began < 0.9
    assert not server.requests
    folder = open_folder(limit=2 * SIZE + 1)
    with folder.lease(files[0]), folder.lease(files[1]):
        with pytest.raises(DataError) as caught:
            open_folder(limit=2 * SIZE + 1).lease(files[2])
        for part in ("600,001 bytes", "are using 600,000", "data.cache_limit_gb", "data.lanes", "2.tar"):
            assert part in str(caught.value)
    assert here(folder) == {"0.tar", "1.tar"}


def test_a_partial_file_counts_with_all_its_bytes_and_goes_when_abandoned(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    a, b, c = (server.add(f"{name}.tar") for name in "abc")
    folder = open_folder(limit=2 * SIZE)
    read(folder, a)
    path = folder.folder / "b.tar"
    lock_path(path).touch()
    partial_path(path, SIZE).write_bytes(content(SIZE, "b.tar")[:PIECE])
    with folder.lease(a):
        read(folder, c)
    assert not partial_path(path, SIZE).exists()
    assert here(folder) == {"a.tar", "c.tar"}
    assert read(folder, b) == content(SIZE, "b.tar")


def test_a_prefetch_waits_for_room_and_takes_what_a_closed_lease_leaves(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    files = [server.add(f"{number}.tar") for number in range(4)]
    folder = open_folder(limit=2 * SIZE)
    lease = folder.lease(files[0])
    folder.prefetch(files[1:])
    wait_until(lambda: here(folder) == {"0.tar", "1.tar"})
    time.sleep(0.3)
    assert here(folder) == {"0.tar", "1.tar"}  # not 1.tar for 2.tar, nor the leased one
    assert server.sent == 2 * SIZE
    lease.close()
    wait_until(lambda: here(folder) == {"1.tar", "2.tar"})
    time.sleep(0.3)
    assert server.sent == 3 * SIZE


@pytest.mark.parametrize("downloads", [0, 2])
def test_no_prefetch_takes_the_files_that_another_process_wishes_for(
    downloads: int, server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    files = [server.add(f"{number}.tar") for number in range(4)]
    one, two = open_folder(limit=2 * SIZE, downloads=downloads), open_folder(limit=2 * SIZE)
    read(one, files[0])
    read(one, files[1])
    one.prefetch(files[:2])
    two.prefetch(files[2:])
    time.sleep(0.3)
    assert here(one) == {"0.tar", "1.tar"}
    one.prefetch([])
    wait_until(lambda: here(one) == {"2.tar", "3.tar"})


def test_room_is_given_away_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        for turn in range(20):
            together = Barrier(8)

            def reserve(number: int, turn: int = turn, together: Barrier = together) -> bool:
                path = tmp_path / "set-0123456789ab" / f"{turn}-{number}.tar"
                with Lock(lock_path(path)) as lock:
                    assert lock.take(exclusive=True)
                    together.wait()
                    fits = Cache(tmp_path, 3 * SIZE).reserve(path, SIZE).fits
                    together.wait()
                    return fits

            assert sum(pool.map(reserve, range(8))) == 3


def test_a_lease_takes_wished_files_last_wanted_first_when_nothing_else_can_go(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    files = [server.add(f"{number}.tar") for number in range(5)]
    folder = open_folder(limit=4 * SIZE)
    for number in (2, 1, 0, 3):
        read(folder, files[number])
        time.sleep(0.01)
    folder.prefetch(files[:3])
    lease = folder.lease(files[4])
    assert here(folder) == {"0.tar", "1.tar", "2.tar", "4.tar"}  # first the one that nobody wants, though used last
    with folder.lease(server.add("5.tar")):
        assert here(folder) == {"0.tar", "1.tar", "4.tar", "5.tar"}
        with open_folder(limit=4 * SIZE).lease(
            server.add("6.tar")
        ):  # another process' lease may, too; it knows no order
            assert here(folder) == {"1.tar", "4.tar", "5.tar", "6.tar"}
    lease.close()


def test_a_lease_waits_for_downloads_that_fill_the_cache_then_takes_their_room(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    files = [server.add(f"{number}.tar") for number in range(3)]
    server.delay = 0.08  # the others take 0.4 s, longer than a lease would wait for nothing
    other, folder = open_folder(limit=2 * SIZE), open_folder(limit=2 * SIZE)
    other.prefetch(files[:2])
    wait_until(lambda: len(server.requests) >= 2)
    assert read(folder, files[2]) == content(SIZE, "2.tar")


# Processes


def test_a_forked_child_goes_on_by_itself_and_does_not_keep_its_parents_lease(
    server: Server, open_folder: Callable[..., RemoteFolder], tmp_path: Path
) -> None:
    a, b = server.add("a.tar"), server.add("b.tar")
    folder = open_folder(limit=SIZE)
    lease = folder.lease(a)
    go, done = os.pipe(), os.pipe()
    gc.collect()  # else the child closes the connections of earlier tests, and waits a second for their loop
    if (pid := os.fork()) == 0:
        try:
            os.close(go[1])  # so that reading ends when the parent does
            assert folder.bytes_fetched == 0
            os.write(done[1], b"x")
            os.read(go[0], 1)
            assert read(folder, a) == content(SIZE, "a.tar")  # fetched by the child
            os._exit(0)
        except BaseException as error:
            (tmp_path / "child").write_text(repr(error))
            os._exit(1)
    try:
        os.read(done[0], 1)
        lease.close()
        assert read(folder, b) == content(
            SIZE, "b.tar"
        )  # takes the place of a.tar, which the child could still be holding
        assert here(folder) == {"b.tar"}
    finally:
        os.close(go[1])
        status = os.waitpid(pid, 0)[1]
    assert status == 0, (tmp_path / "child").read_text()
    assert here(folder) == {"a.tar"}


def test_a_forked_child_waits_for_no_lock_that_a_thread_of_its_parent_held(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    folder = open_folder()
    lease = folder.lease(server.add("a.tar"))
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with folder._here.changed:
            held.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    gc.collect()
    if (pid := os.fork()) == 0:
        signal.alarm(20)
        lease.close()
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    go.set()
    thread.join()
    assert status == 0


def test_a_dataset_json_from_the_future_is_fetched_anew(
    server: Server, open_folder: Callable[..., RemoteFolder]
) -> None:
    server.files["/set/dataset.json"] = b'{"old": 1}'
    file = RemoteFile("dataset.json", None, None)
    first = open_folder()
    read(first, file)
    server.files["/set/dataset.json"] = b'{"new": 22}'
    os.utime(first.folder / "dataset.json", (time.time(), time.time() + 1e6))
    assert read(open_folder(), file) == b'{"new": 22}'


# What errors mean


def test_retry_after_is_read_as_seconds_and_as_a_date() -> None:
    assert transport._retry_after({"Retry-After": "7"}) == 7
    assert transport._retry_after({"retry-after": "0"}) == 0
    assert 97 < transport._retry_after({"Retry-After": formatdate(time.time() + 100, usegmt=True)}) <= 100
    assert transport._retry_after({"Retry-After": formatdate(time.time() - 100, usegmt=True)}) == 0
    assert transport._retry_after({"Retry-After": "soon"}) == transport._retry_after({}) == 0


class _Answered(Exception):
    """Shaped like the errors of httpx (Hugging Face), botocore and aiohttp."""

    def __init__(self, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status} for url https://reader:hunter2@host/x?token=hunter2")
        if kind == "httpx":
            self.response: object = SimpleNamespace(status_code=status, headers=headers or {})
        elif kind == "botocore":
            meta = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
            self.response = {"ResponseMetadata": meta, "Error": {"Code": "SomeCode"}}
        else:
            self.status, self.headers = status, headers


@pytest.mark.parametrize("kind", ["httpx", "botocore", "aiohttp"])
@pytest.mark.parametrize(
    "status", [200, 400, 401, 403, 404, 408, 409, 410, 416, 425, 429, 500, 501, 502, 503, 504, 520]
)
def test_which_status_is_worth_another_attempt(kind: str, status: int) -> None:
    fault = transport.fault_of(_Answered(status, kind, {"retry-after": "9"}), 60)
    assert (not fault.advice) == (status in (408, 416, 425, 429) or status >= 500)
    assert fault.wait == (9 if status in (429, 503) else 0)
    assert str(status) in fault.words
    assert "hunter2" not in fault.words


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (ConnectionResetError("reset by peer"), True), (TimeoutError(), True), (OSError(5, "EIO"), True), (EOFError(), True),
        (FileNotFoundError("x"), False), (PermissionError("x"), False), (ValueError("no URL"), False), (TypeError(), False),
        (OSError("Forbidden: b/o"), False),
    ],
)  # fmt: skip
def test_which_error_is_worth_another_attempt(error: Exception, passing: bool) -> None:
    assert (not transport.fault_of(error, 60).advice) == passing


def test_urls_in_an_error_lose_their_credentials() -> None:
    fault = transport.fault_of(ConnectionError("no way to 'https://u:hunter2@proxy:80/p?k=hunter2'\n at all"), 60)
    assert fault.words == "ConnectionError: no way to 'https://proxy:80/p' at all"
