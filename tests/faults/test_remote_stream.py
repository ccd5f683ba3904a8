"""The stream of a data set behind a URL: what a local one gives, through faults, within the limit of the cache."""

import hashlib
import os
import pickle
import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from servers import Fault, Request, Server, serving

from dnascale.data import ahead, remote
from dnascale.data import stream as chunks
from dnascale.data.corpus import open_corpus
from dnascale.data.mapped import MappedShards
from dnascale.data.remote import Retry
from dnascale.data.shards import Dataset, Split
from dnascale.data.stream import Dealing, TrainStream
from dnascale.data.writer import ShardWriter
from dnascale.errors import DataError
from dnascale.vocab import CHARACTER

pytestmark = pytest.mark.faults

BLOCK, SHARD_BLOCKS, SHARDS = 512, 64, 24
CONTEXT = 64
GLOBAL = 32  # windows
LANES, LANE_WINDOWS = 2, 128


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """24 shards of 33 kB."""
    folder = tmp_path_factory.mktemp("remote") / "set"
    tokens = np.random.default_rng(0).integers(0, 4, SHARDS * SHARD_BLOCKS * BLOCK - 999, dtype=np.uint8)
    with ShardWriter(folder, "train", BLOCK, SHARD_BLOCKS) as writer:
        left = tokens
        while len(left):
            piece, left = left[: writer.room], left[writer.room :]
            writer.write(piece)
        split = Split(1, len(tokens), len(tokens), len(tokens), 0, {}, writer.index())
    dataset = Dataset(folder, "remote", "a test", CHARACTER, False, [], {}, {}, {}, {"train": split}, BLOCK)
    dataset.save(folder)
    return dataset


@pytest.fixture
def server(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the data set; downloads ask for 8 kB at a time and do not wait long."""
    # A chunk is to a shard here what it is in use: an eighth.
    monkeypatch.setattr(chunks, "_CHUNK_TOKENS", 4 << 10)
    monkeypatch.setattr(ahead, "_STRETCH_TOKENS", 4 << 10)
    monkeypatch.setattr(ahead, "_SHARDS", 2)
    init = remote.RemoteFolder.__init__

    def quick(self: remote.RemoteFolder, *args: object, **options: object) -> None:
        options |= {"piece": 8 << 10, "deadline": 30.0, "retry": Retry(base=0.005, cap=0.02, stall=10)}
        init(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(remote.RemoteFolder, "__init__", quick)
    with serving() as home:
        home.put(data.folder)
        yield home


def stream(
    location: str | Path, cache: Path, limit: int | None = None, rank: int = 0, world: int = 1, workers: int = 0
) -> TrainStream:
    corpus = open_corpus({"data": location}, cache=cache, cache_limit=limit)
    reader = corpus.reader("train", CONTEXT)
    order = corpus.order(reader, 5, LANES, LANE_WINDOWS)
    return TrainStream(reader, order, Dealing(GLOBAL, 1, rank, world), workers=workers)


def digest(of: TrainStream, steps: int) -> str:
    """Of the addresses, keys and bytes of `steps` global batches."""
    found = hashlib.sha256()
    for _ in range(steps):
        for batch in of.next_step():
            windows = batch.windows
            for column in (windows.epoch, windows.shard, windows.start, windows.key, batch.tokens.numpy()):
                found.update(np.ascontiguousarray(column).tobytes())
    return found.hexdigest()


def two_epochs(of: TrainStream) -> int:
    return 2 * of.order.epoch_windows // GLOBAL


def shard_bytes(data: Dataset) -> int:
    return sum(shard.bytes for shard in data.split("train").shards)


def files_of(cache: Path) -> int:
    """Bytes of what has been downloaded whole or in part. A file may go while it is looked at."""
    total = 0
    for path in cache.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and path.suffix != ".lock" else 0
        except FileNotFoundError:
            continue
    return total


def one_in_five(seed: int) -> object:
    draw = random.Random(seed)
    kinds = ["500", "503", "cut", "short", "html", Fault("429", {"Retry-After": "0"})]

    def fault(_: Request) -> Fault | None:
        if draw.random() >= 0.2:
            return None
        chosen = draw.choice(kinds)
        return chosen if isinstance(chosen, Fault) else Fault(chosen)

    return fault


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_bytes_over_http_with_faults_are_those_of_the_local_files(
    data: Dataset, server: Server, tmp_path: Path, workers: int
) -> None:
    local = stream(data.folder, tmp_path / "none")
    server.always = one_in_five(workers)  # type: ignore[assignment]
    far = stream(f"{server.url}/set", tmp_path / "cache", workers=workers)
    assert digest(far, two_epochs(far)) == digest(local, two_epochs(local))
    faults = [request for request in server.requests if request.fault]
    assert len(faults) > 0.1 * len(server.requests)
    # Nothing that arrived is asked for again: without what faulty answers brought, each byte once.
    assert server.sent - sum(request.sent for request in faults) == sum(len(body) for body in server.files.values())
    assert not (tmp_path / "none").exists()


def test_order_and_bytes_over_s3_are_those_of_the_local_files(
    data: Dataset, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    host = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    host.start()
    url = "http://{}:{}".format(*host.get_host_and_port())
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="genomes")
    for path, body in server.files.items():
        client.put_object(Bucket="genomes", Key=path[1:], Body=body)
    try:
        far = stream("s3://genomes/set", tmp_path / "cache")
        local = stream(data.folder, tmp_path / "none")
        assert digest(far, two_epochs(far)) == digest(local, two_epochs(local))
        assert far.reader.sources[0].remote is not None
        assert far.reader.sources[0].remote.bytes_fetched == sum(len(body) for body in server.files.values())
    finally:
        host.stop()


def test_a_cache_of_a_third_of_the_data_keeps_its_limit_and_fetches_each_shard_once_an_epoch(
    data: Dataset, server: Server, tmp_path: Path
) -> None:
    limit = shard_bytes(data) // 3
    done = threading.Event()
    sizes = []

    def watch() -> None:
        while not done.wait(0.002):
            sizes.append(files_of(tmp_path / "cache"))

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        far = stream(f"{server.url}/set", tmp_path / "cache", limit)
        found = digest(far, two_epochs(far))
    finally:
        done.set()
        watching.join()
    assert found == digest(stream(data.folder, tmp_path / "none"), two_epochs(far))
    assert limit / 2 < max(sizes) <= limit
    fetched = server.sent / shard_bytes(data)
    assert 1.5 < fetched < 2.4  # two epochs; a shard that is kept over their border is not fetched again


def test_two_ranks_of_a_node_share_the_cache_and_get_the_global_batches_of_one(
    data: Dataset, server: Server, tmp_path: Path
) -> None:
    far = [stream(f"{server.url}/set", tmp_path / "cache", rank=rank, world=2) for rank in range(2)]
    local = stream(data.folder, tmp_path / "none")
    for _ in range(two_epochs(local)):
        whole = local.next_step()[0]
        parts = [one.next_step()[0] for one in far]
        for rank, part in enumerate(parts):
            np.testing.assert_array_equal(part.tokens, whole.tokens[rank::2])
            np.testing.assert_array_equal(part.keys, whole.keys[rank::2])
    assert server.sent == sum(len(body) for body in server.files.values())


def test_a_cache_too_small_for_the_lanes_says_so(data: Dataset, server: Server, tmp_path: Path) -> None:
    far = stream(f"{server.url}/set", tmp_path / "cache", data.split("train").shards[0].bytes + 9000)
    with pytest.raises(DataError, match=r"data\.cache_limit_gb.*data\.lanes"):
        digest(far, two_epochs(far))


def test_a_shard_that_is_another_at_the_url_is_refused_by_name(data: Dataset, server: Server, tmp_path: Path) -> None:
    path = "/set/train/shard-000003.tar"
    body = server.files[path]
    server.files[path] = body[:5000] + bytes([body[5000] ^ 1]) + body[5001:]
    far = stream(f"{server.url}/set", tmp_path / "cache")
    with pytest.raises(DataError, match=r"shard-000003\.tar"):
        digest(far, two_epochs(far))


def test_a_data_set_replaced_at_its_url_by_one_of_the_same_shape_is_read_anew(
    data: Dataset, server: Server, tmp_path: Path
) -> None:
    before = stream(f"{server.url}/set", tmp_path / "cache")
    digest(before, two_epochs(before))
    before.reader.release()
    for path in (tmp_path / "cache").rglob("*.*"):
        os.utime(path, (1, 1))  # as a minute later
    new = tmp_path / "new"
    split = data.split("train")
    with ShardWriter(new, "train", BLOCK, SHARD_BLOCKS) as writer:
        for number in range(len(split.shards)):
            writer.write(3 - MappedShards(data, "train").stream(number))
        other = replace(data, folder=new, splits={"train": replace(split, shards=writer.index())})
    other.save(new)
    for path in new.rglob("*"):
        if path.is_file():
            name = f"/set/{path.relative_to(new)}"
            assert name.endswith("dataset.json") or len(server.files[name]) == path.stat().st_size
            server.files[name] = path.read_bytes()
    after, local = stream(f"{server.url}/set", tmp_path / "cache"), stream(new, tmp_path / "none")
    assert digest(after, two_epochs(after)) == digest(local, two_epochs(local))


def test_a_small_data_set_is_not_looked_through_again_and_again(
    data: Dataset, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "_SHARDS", 1000)  # more than there are
    far = stream(f"{server.url}/set", tmp_path / "cache")
    asked = []
    windows = far.order.windows

    def counted(positions: np.ndarray) -> object:
        asked.append(len(positions))
        return windows(positions)

    monkeypatch.setattr(far.order, "windows", counted)
    far.next_step()
    assert sum(asked) < 2 * far.order.epoch_windows


def test_looking_at_all_shards_holds_none_of_them_in_a_limited_cache(
    data: Dataset, server: Server, tmp_path: Path
) -> None:
    corpus = open_corpus({"data": f"{server.url}/set"}, cache=tmp_path / "cache", cache_limit=shard_bytes(data) // 5)
    reader = corpus.reader("train", CONTEXT)
    for shard in range(SHARDS):
        reader.check(shard, blocks=True)
    assert files_of(tmp_path / "cache") <= shard_bytes(data) // 5


def test_a_stream_of_a_url_is_read_on_in_another_process(data: Dataset, server: Server, tmp_path: Path) -> None:
    far = stream(f"{server.url}/set", tmp_path / "cache")
    far.next_step()
    again = pickle.loads(pickle.dumps(far))
    assert torch.equal(again.next_step()[0].tokens, far.next_step()[0].tokens)
