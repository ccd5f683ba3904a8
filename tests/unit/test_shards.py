"""Shards on disk: other people's readers agree with ours, reruns are identical, and no damage is accepted."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dnascale.data.mapped import MappedShards
from dnascale.data.read import split_records, split_stream
from dnascale.data.shards import BLOCK_ROW, SHARD_ROW, Dataset, Index, Split, block_offset, load_dataset
from dnascale.data.verify import verify
from dnascale.data.writer import ShardWriter
from dnascale.errors import DataError
from dnascale.files import json_digest
from dnascale.vocab import CHARACTER, Vocabulary

BLOCK = 512  # tokens; the smallest whole number of tar blocks


def random_records(seed: int, count: int = 40, longest: int = 400) -> list[np.ndarray]:
    """Bases with soft-mask bits: uint8 arrays of 1 to `longest` tokens."""
    rng = np.random.default_rng(seed)
    lengths = [1, 2, *rng.integers(1, longest + 1, count), 1]
    records = [rng.integers(0, 5, length, dtype=np.uint8) for length in lengths]
    return [record | (rng.random(len(record)) < 0.2).astype(np.uint8) << 7 for record in records]


def stream_of(records: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part for record in records for part in (record, np.array([CHARACTER.sep], np.uint8))])


def write_dataset(folder: Path, stream: np.ndarray, shard_blocks: int = 3, pieces: int = 7) -> Dataset:
    """A data set of one split `train`, its stream written in `pieces`-token steps of uneven length."""
    writer = ShardWriter(folder, "train", block_tokens=BLOCK, shard_blocks=shard_blocks)
    rng = np.random.default_rng(pieces)
    done = 0
    while done < len(stream):
        step = min(int(rng.integers(1, 100 * pieces)), writer.room)
        writer.write(stream[done : done + step])
        done += len(stream[done : done + step])
    of_shards = np.split(stream, range(shard_blocks * BLOCK, len(stream), shard_blocks * BLOCK))
    shards = [replace(s, records=len(parts_of(part))) for s, part in zip(writer.close(), of_shards, strict=True)]
    lengths = [len(part) for part in parts_of(stream)]
    separators = bytes(stream & 0x7F).count(CHARACTER.sep)
    soft_masked = int((stream >> 7).sum())
    split = Split(
        separators, sum(lengths), len(stream), max(lengths), soft_masked, {}, Index.of(shards, "train/shard-%06d.tar")
    )
    Dataset(folder, "tiny", "a test", CHARACTER, True, [], {}, {}, {}, {"train": split}, block_tokens=BLOCK).save(
        folder
    )
    return load_dataset(folder)


def parts_of(stream: np.ndarray) -> list[bytes]:
    """The records of which a stream holds a part, without soft mask."""
    return [part for part in bytes(stream & 0x7F).split(bytes([CHARACTER.sep])) if part]


@pytest.fixture(scope="module")
def records() -> list[np.ndarray]:
    return random_records(1)


@pytest.fixture(scope="module")
def written(records: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("shards") / "data", stream_of(records))


@pytest.fixture
def dataset(written: Dataset, tmp_path: Path) -> Dataset:
    """A copy that a test may damage."""
    shutil.copytree(written.folder, tmp_path / "data")
    return load_dataset(tmp_path / "data")


def shards(dataset: Dataset) -> Index:
    return dataset.split("train").shards


def streams(dataset: Dataset) -> list[np.ndarray]:
    mapped = MappedShards(dataset, "train")
    return [mapped.stream(number) for number in range(len(shards(dataset)))]


def paths(dataset: Dataset) -> list[Path]:
    return [dataset.folder / shard.name for shard in shards(dataset)]


# --- reading back ---


def test_stream_is_cut_into_full_shards_of_full_blocks_with_a_short_last_one(
    written: Dataset, records: list[np.ndarray]
) -> None:
    stream = stream_of(records)
    sizes = [shard.tokens for shard in shards(written)]
    assert len(sizes) > 3
    assert set(sizes[:-1]) == {3 * BLOCK}
    assert sum(sizes) == len(stream)
    np.testing.assert_array_equal(np.concatenate(streams(written)), stream)


def test_split_gives_its_records_back_without_soft_mask_also_across_shards(
    written: Dataset, records: list[np.ndarray]
) -> None:
    plain = [record & 0x7F for record in records]
    read = split_records(written, "train")
    assert [part.tolist() for part in read] == [record.tolist() for record in plain]
    np.testing.assert_array_equal(split_stream(written, "train", 10**6), stream_of(plain))


def test_a_sample_of_a_split_has_its_share_of_the_beginning_of_each_shard(written: Dataset) -> None:
    whole = written.split("train").tokens
    sample = split_stream(written, "train", 1000)
    assert 500 < len(sample) <= 1000 + len(written.split("train").shards)
    expected = []
    for number, stream in enumerate(streams(written)):
        part = stream[: len(stream) * 1000 // whole] & 0x7F
        ends = np.flatnonzero(part == CHARACTER.sep)
        if number:
            part = part[ends[0] :] if len(ends) else np.concatenate([[CHARACTER.sep], part])
        expected.append(part)
    np.testing.assert_array_equal(sample, np.concatenate(expected))
    assert sum(map(len, split_records(written, "train", 1000))) == int((sample != CHARACTER.sep).sum())


def test_a_sample_of_a_url_is_of_few_shards_but_as_large_as_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnascale.data import read

    many = write_dataset(tmp_path / "many", stream_of(random_records(5, 300)))
    assert len(many.split("train").shards) > 30
    monkeypatch.setattr(read, "_SAMPLED_SHARDS", 4)
    for tokens, shards in ((4_000, 4), (40_000, 30)):
        remote = load_dataset((tmp_path / "many").as_uri(), tmp_path / f"cache {tokens}")
        found = len(split_stream(remote, "train", tokens))
        fetched = len(list((tmp_path / f"cache {tokens}").rglob("*.tar")))
        assert 0.5 * tokens < found <= tokens + fetched
        assert fetched <= shards


def test_tarfile_finds_the_members_where_block_offsets_say(written: Dataset) -> None:
    everything = zip(shards(written), paths(written), streams(written), strict=True)
    for number, (shard, path, stream) in enumerate(everything):
        assert shard.bytes == path.stat().st_size
        assert shard.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert [m.name for m in members] == [f"{number:06d}-{k:06d}.bin" for k in range(len(shard.blocks))]
            for k, member in enumerate(members):
                assert member.isreg()
                assert member.offset_data == block_offset(k, BLOCK)
                content = tar.extractfile(member).read()  # type: ignore[union-attr]
                assert content == stream[k * BLOCK : (k + 1) * BLOCK].tobytes()
                assert shard.blocks[k].tolist() == (member.offset_data, len(content), zlib.crc32(content))
                owner = (member.mtime, member.uid, member.gid, member.uname, member.gname)
                assert owner == (0, 0, 0, "", "")  # nothing of this machine


def test_webdataset_reads_the_same_tokens(written: Dataset, records: list[np.ndarray]) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset([str(path) for path in paths(written)], shardshuffle=False))
    assert len({sample["__key__"] for sample in samples}) == len(samples)
    assert b"".join(sample["bin"] for sample in samples) == stream_of(records).tobytes()


def test_hugging_face_datasets_reads_the_same_tokens(
    written: Dataset, records: list[np.ndarray], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    read = datasets.load_dataset(
        "webdataset",
        data_files={"train": [str(path) for path in paths(written)]},
        split="train",
        streaming=True,
        cache_dir=str(tmp_path),
    )
    assert b"".join(sample["bin"] for sample in read) == stream_of(records).tobytes()


def test_the_same_stream_in_other_pieces_gives_the_same_bytes(
    written: Dataset, records: list[np.ndarray], tmp_path: Path
) -> None:
    again = write_dataset(tmp_path / "again", stream_of(records), pieces=1)
    files = [path.relative_to(written.folder) for path in written.folder.rglob("*") if path.is_file()]
    assert len(files) == len(paths(written)) + 3
    for file in files:
        assert (again.folder / file).read_bytes() == (written.folder / file).read_bytes()
    assert again.fingerprint == written.fingerprint


def test_fingerprint_changes_with_whatever_changes_the_tokens_and_with_nothing_else(
    written: Dataset, records: list[np.ndarray], tmp_path: Path
) -> None:
    stream = stream_of(records)
    stream[-2] ^= 1
    swapped = Vocabulary("swapped", tuple("TACG") + CHARACTER.tokens[4:], CHARACTER.bases)
    others = [
        write_dataset(tmp_path / "one token", stream),
        write_dataset(tmp_path / "other shards", stream_of(records), shard_blocks=2),
        replace(written, vocabulary=swapped),
        replace(written, layout="records"),
        replace(written, translate=CHARACTER.byte_table),
        replace(written, translate=swapped.byte_table),
        replace(written, splits={"valid": written.split("train")}),
        replace(written, splits=written.splits | {"valid": written.split("train")}),
    ]
    assert len({written.fingerprint} | {other.fingerprint for other in others}) == 9
    moved = replace(written, folder=tmp_path, name="another", created_by="somebody", options={"seed": 1})
    assert moved.fingerprint == written.fingerprint


def test_a_stream_that_ends_at_a_block_or_shard_end_leaves_nothing_empty(tmp_path: Path) -> None:
    for blocks in (1, 2, 3, 6):
        stream = np.arange(blocks * BLOCK, dtype=np.int64).astype(np.uint8) & 3
        stream[-1] = CHARACTER.sep
        dataset = write_dataset(tmp_path / str(blocks), stream)
        assert [len(shard.blocks) for shard in shards(dataset)] == {1: [1], 2: [2], 3: [3], 6: [3, 3]}[blocks]
        np.testing.assert_array_equal(np.concatenate(streams(dataset)), stream)
        assert not verify(dataset)


# --- damage ---


def test_whole_shards_pass_verification(written: Dataset) -> None:
    mapped = MappedShards(written, "train")
    for number in range(len(shards(written))):
        mapped.check_all(number)
        mapped.check_size(number)
    assert verify(written) == []


def test_no_flipped_bit_is_accepted_and_a_damaged_block_is_named(dataset: Dataset) -> None:
    """Bits of blocks are refused by who reads them; those of headers and padding by `verify`."""
    rng = np.random.default_rng(2)
    which = [0, len(shards(dataset)) - 1]
    places = [(which[i % 2], None) for i in range(100)]
    # Besides: first and last byte of a header, a payload, the padding of the short block, and the end of the tar.
    last = shards(dataset)[which[1]]
    end = block_offset(len(last.blocks) - 1, BLOCK) + last.tokens % BLOCK
    places += [(0, at) for at in (0, 511, 512, 512 + BLOCK - 1, 512 + BLOCK)]  # type: ignore[misc]
    places += [(which[1], at) for at in (end - 1, end, last.bytes - 1025, last.bytes - 1024, last.bytes - 1)]  # type: ignore[misc]
    for number, place in places:
        shard, path = shards(dataset)[number], paths(dataset)[number]
        good = path.read_bytes()
        data = bytearray(good)
        at = int(rng.integers(len(data))) if place is None else place
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        block, offset = divmod(at, BLOCK + 512)
        payload = min(BLOCK, shard.tokens - block * BLOCK)
        mapped = MappedShards(dataset, "train")
        if 512 <= offset < 512 + payload:
            for action in (mapped.check_all, mapped.stream):
                with pytest.raises(DataError, match=re.escape(f"{path}: block {block} (bytes ")):
                    action(number)
        else:
            mapped.check_all(number)
        faults = verify(dataset)
        assert faults, (number, at)
        assert all(str(path) in fault for fault in faults)
        path.write_bytes(good)
    assert verify(dataset) == []


def test_two_blocks_that_changed_places_are_refused(dataset: Dataset) -> None:
    data = bytearray(paths(dataset)[0].read_bytes())
    first, second = (slice(block_offset(k, BLOCK), block_offset(k, BLOCK) + BLOCK) for k in (0, 1))
    data[first], data[second] = data[second], data[first]
    paths(dataset)[0].write_bytes(data)
    with pytest.raises(DataError, match=r"block 0 \(bytes 512 to 1,024\)"):
        MappedShards(dataset, "train").check_all(0)
    with pytest.raises(DataError, match=r"block 0 \(bytes 512 to 1,024\)"):
        MappedShards(dataset, "train").stream(0)


@pytest.mark.parametrize("change", [-1, -1024, -513, 1, 512])
def test_a_shard_of_another_size_is_refused_when_opened(dataset: Dataset, change: int) -> None:
    path = paths(dataset)[1]
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    sizes = f"{len(data) + change:,} bytes, dataset.json says {len(data):,}"
    mapped = MappedShards(dataset, "train")
    for action in (mapped.stream, mapped.check_all, mapped.check_size):
        action(0)
        with pytest.raises(DataError, match=re.escape(f"{path} has {sizes}")):
            action(1)


def test_a_missing_or_empty_shard_is_refused_when_opened(dataset: Dataset) -> None:
    paths(dataset)[0].unlink()
    mapped = MappedShards(dataset, "train")
    for action in (mapped.stream, mapped.check_all, mapped.check_size):
        with pytest.raises(DataError, match=re.escape(f"{paths(dataset)[0]} is missing")):
            action(0)
    paths(dataset)[0].touch()
    for action in (mapped.stream, mapped.check_all, mapped.check_size):
        with pytest.raises(DataError, match="has 0 bytes"):
            action(0)


# --- the index ---


def test_an_index_is_a_sequence_of_shards(written: Dataset) -> None:
    index = shards(written)
    listed = list(index)
    assert [shard.name for shard in listed] == [f"train/shard-{number:06d}.tar" for number in range(len(index))]
    assert len(listed) == len(index)
    assert (index[-1].name, index[-1].blocks.tolist()) == (listed[-1].name, listed[-1].blocks.tolist())
    assert [shard.name for shard in index[1:3]] == [shard.name for shard in listed[1:3]]
    for wrong in (len(index), -len(index) - 1):
        with pytest.raises(IndexError):
            index[wrong]
    again = Index.of(listed, "train/shard-%06d.tar")
    assert again == index
    assert Index.of(listed) != index  # names of their own, and no pattern
    assert Index.of(listed[:-1], "train/shard-%06d.tar") != index
    assert again.tokens.tolist() == [shard.tokens for shard in listed]
    assert again.first_block.tolist() == [0, *np.cumsum([len(shard.blocks) for shard in listed]).tolist()]


def test_rows_of_the_index_have_the_size_that_the_format_says() -> None:
    assert (SHARD_ROW.itemsize, BLOCK_ROW.itemsize) == (64, 16)


def test_shards_may_have_any_names_also_elsewhere(written: Dataset, tmp_path: Path) -> None:
    listed = []
    for number, (shard, path) in enumerate(zip(shards(written), paths(written), strict=True)):
        name = str(tmp_path / "else where" / f"{number} 100%.tar") if number % 2 else f"é{number}.tar"
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "else where").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "data" / name)
        listed.append(replace(shard, name=name))
    split = replace(written.split("train"), shards=Index.of(listed))
    replace(written, folder=tmp_path / "data", splits={"train": split}).save(tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    assert dataset.split("train") == split
    assert dataset.fingerprint == written.fingerprint
    for one, other in zip(streams(dataset), streams(written), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("file", ["shards.npy", "blocks.npy"])
def test_no_flipped_bit_of_the_index_is_accepted_nor_one_of_another_size(dataset: Dataset, file: str) -> None:
    path = dataset.folder / "train" / file
    good = path.read_bytes()
    rng = np.random.default_rng(3)
    for at in [0, len(good) - 1, *rng.integers(0, len(good), 60).tolist()]:
        data = bytearray(good)
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        with pytest.raises(DataError, match=re.escape(f"{path} does not match its digest")):
            load_dataset(dataset.folder)
    for data in (b"", good[:-1], good + b"\0"):
        path.write_bytes(data)
        with pytest.raises(DataError, match=re.escape(f"{path} does not match its digest")):
            load_dataset(dataset.folder)
    path.unlink()
    with pytest.raises(DataError, match=re.escape(f"{path} is missing")):
        load_dataset(dataset.folder)
    path.write_bytes(good)
    assert load_dataset(dataset.folder) == dataset


def test_the_index_of_another_data_set_is_refused_even_when_dataset_json_agrees_with_it(
    dataset: Dataset, records: list[np.ndarray], tmp_path: Path
) -> None:
    stream = stream_of(records)
    stream[-2] ^= 1
    other = write_dataset(tmp_path / "other", stream)
    body = json.loads((dataset.folder / "dataset.json").read_text())
    body["splits"] = json.loads((other.folder / "dataset.json").read_text())["splits"]
    for file in ("shards.npy", "blocks.npy"):
        shutil.copy(other.folder / "train" / file, dataset.folder / "train" / file)
    del body["sha256"]
    (dataset.folder / "dataset.json").write_text(json.dumps(body | {"sha256": json_digest(body)}))
    with pytest.raises(DataError, match="do not belong together"):
        load_dataset(dataset.folder)


# --- dataset.json ---


def leaves(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in a JSON tree."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else None
    if children is None:
        return [at]
    return [leaf for key, child in list(children) for leaf in leaves(child, (*at, key))]


def edited(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return f"{value}x"


def test_every_edit_of_a_value_in_dataset_json_is_refused(dataset: Dataset) -> None:
    path = dataset.folder / "dataset.json"
    text = path.read_text()
    for *above, key in leaves(json.loads(text)):
        body = json.loads(text)
        parent = body
        for step in above:
            parent = parent[step]
        parent[key] = edited(parent[key])
        path.write_text(json.dumps(body))
        with pytest.raises(DataError, match=re.escape(str(path))):
            load_dataset(dataset.folder)
    path.write_text(json.dumps(json.loads(text)))  # another layout is no edit
    assert load_dataset(dataset.folder) == dataset


def test_every_removed_entry_of_dataset_json_is_refused(dataset: Dataset) -> None:
    path = dataset.folder / "dataset.json"
    text = path.read_text()
    for key in json.loads(text):
        body = json.loads(text)
        del body[key]
        path.write_text(json.dumps(body))
        with pytest.raises(DataError, match=re.escape(str(path))):
            load_dataset(dataset.folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"format": "dnascale-dataset"}'])
def test_a_dataset_json_that_is_none_is_refused(dataset: Dataset, content: bytes) -> None:
    (dataset.folder / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset\.json is"):
        load_dataset(dataset.folder)


def test_a_newer_format_version_says_to_upgrade(dataset: Dataset) -> None:
    path = dataset.folder / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2, "something": "new"}))
    with pytest.raises(DataError, match="format version 2, this dnascale reads up to 1: upgrade dnascale"):
        load_dataset(dataset.folder)


def test_a_folder_that_is_no_data_set_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such data set folder.*dnascale prepare"):
        load_dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"dataset\.json is missing"):
        load_dataset(tmp_path)


def test_a_split_that_is_not_there_is_named_with_those_that_are(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="no split 'test', it has: train; prepare the data with --test"):
        dataset.split("test")
