"""Tokens of two bytes and tokens of several bases: from disk to windows, by every reader, and with damage found."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dnascale.data.facade import MaskingCollator, WindowDataset
from dnascale.data.masking import Masking
from dnascale.data.order import Windows
from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.read import WindowReader, split_records, split_stream
from dnascale.data.shards import Dataset, Index, Split, load_dataset
from dnascale.data.stream import TrainStream
from dnascale.data.verify import verify
from dnascale.data.writer import ShardWriter
from dnascale.errors import DataError
from dnascale.vocab import CHARACTER, Vocabulary, load_vocabulary

BLOCK = 512  # tokens
SPECS = ["kmer:6", "kmer:4:overlap", "kmer:3"]


@pytest.fixture(params=SPECS)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return load_vocabulary(request.param)


def random_records(count: int = 40) -> list[np.ndarray]:
    """Character ids with bit 7 on some, and other letters on a few."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 900, count)
    return [
        (rng.choice(6, n, p=[0.245] * 4 + [0.01] * 2) | (rng.random(n) < 0.3) << 7).astype(np.uint8) for n in lengths
    ]


def written(folder: Path, vocabulary: Vocabulary) -> tuple[Dataset, list[np.ndarray]]:
    """A data set of two blocks a shard, and its token stream by shard."""
    records = random_records()
    writer = ShardWriter(folder, "train", BLOCK, shard_blocks=2, dtype=vocabulary.dtype)
    separator = np.array([vocabulary.sep], dtype=vocabulary.dtype)
    stream = np.concatenate([np.append(vocabulary.encode_codes(r), separator) for r in records])
    for at in range(0, len(stream), 2 * BLOCK):
        writer.write(stream[at : at + 2 * BLOCK])
    index = writer.index()
    bases = sum(map(len, records))
    split = Split(len(records), bases, len(stream), max(map(len, records)), 0, {}, index)
    Dataset(folder, "", "", vocabulary, True, [], {}, {}, {}, {"train": split}, BLOCK).save(folder)
    return load_dataset(folder), [stream[at : at + 2 * BLOCK] for at in range(0, len(stream), 2 * BLOCK)]


def test_windows_are_slices_of_the_stream_within_and_across_blocks(vocabulary: Vocabulary, tmp_path: Path) -> None:
    dataset, streams = written(tmp_path, vocabulary)
    reader = WindowReader(dataset, "train", 100)
    rng = np.random.default_rng(1)
    shard = rng.integers(0, len(streams) - 1, 200)
    start = rng.integers(0, 2 * BLOCK - 100, 200)
    start[:20] = BLOCK - 50
    zeros = np.zeros(200, dtype=np.int64)
    read = reader.read(Windows(zeros, shard, start, zeros))
    assert read.dtype == (torch.uint16 if vocabulary.dtype.itemsize == 2 else torch.uint8)
    expected = np.stack([streams[s][at : at + 100] for s, at in zip(shard.tolist(), start.tolist(), strict=True)])
    np.testing.assert_array_equal(read.numpy(), expected)


def test_members_are_the_tokens_little_endian_in_any_tar_reader(vocabulary: Vocabulary, tmp_path: Path) -> None:
    dataset, streams = written(tmp_path, vocabulary)
    for number, stream in enumerate(streams):
        content = io.BytesIO((tmp_path / dataset.split("train").shards.name(number)).read_bytes())
        with tarfile.open(fileobj=content) as tar:
            members = b"".join(tar.extractfile(member).read() for member in tar.getmembers())  # type: ignore[union-attr]
        np.testing.assert_array_equal(np.frombuffer(members, dtype=f"<u{vocabulary.dtype.itemsize}"), stream)


def test_the_documented_reader_agrees(vocabulary: Vocabulary, tmp_path: Path) -> None:
    dataset, streams = written(tmp_path, vocabulary)
    script = Path(__file__).parents[2] / "docs" / "reference" / "read_format.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    whole = np.concatenate(streams)
    assert done.stdout.split() == ["train", str(len(whole)), hashlib.sha256(whole.tobytes()).hexdigest()]
    np.testing.assert_array_equal(split_stream(dataset, "train"), whole & (vocabulary.soft_mask_bit - 1))


def test_records_come_back_as_letters(vocabulary: Vocabulary, tmp_path: Path) -> None:
    dataset, _ = written(tmp_path, vocabulary)
    for found, record in zip(split_records(dataset, "train"), random_records(), strict=True):
        np.testing.assert_array_equal(found, record & 0x7F)


def test_a_whole_data_set_has_no_fault_and_a_changed_byte_is_named(vocabulary: Vocabulary, tmp_path: Path) -> None:
    dataset, _ = written(tmp_path, vocabulary)
    dataset = _with_records(dataset, vocabulary)
    assert verify(dataset) == []
    path = tmp_path / dataset.split("train").shards.name(1)
    content = bytearray(path.read_bytes())
    token = 77
    place = 2 * 512 + BLOCK * vocabulary.dtype.itemsize + token * vocabulary.dtype.itemsize
    content[place] ^= 1
    path.write_bytes(content)
    faults = verify(dataset)
    assert len(faults) == 1
    assert f"byte {place:,} (block 1, token {token})" in faults[0]
    with pytest.raises(DataError, match="does not match its checksum"):
        split_stream(dataset, "train")


def _with_records(dataset: Dataset, vocabulary: Vocabulary) -> Dataset:
    """The index says of how many records each shard holds a part."""
    rows = dataset.split("train").shards.shards.copy()
    at, ends = 0, []
    for record in random_records():
        size = len(vocabulary.encode_codes(record))
        ends.append((at, at + size))
        at += size + 1
    for number, row in enumerate(rows):
        low, high = number * 2 * BLOCK, (number + 1) * 2 * BLOCK
        row["records"] = sum(begin < high and end > low for begin, end in ends)
    split = dataset.split("train")
    bases, soft = sum(map(len, random_records())), sum(int((r >> 7).sum()) for r in random_records())
    split = Split(split.records, bases, split.tokens, split.longest_record, soft, {}, Index(split.shards.names, rows, split.shards.blocks))  # fmt: skip
    Dataset(dataset.folder, "", "", vocabulary, True, [], {}, {}, {}, {"train": split}, BLOCK).save(dataset.folder)
    return load_dataset(dataset.folder)


def test_a_wrong_number_of_bases_is_found(vocabulary: Vocabulary, tmp_path: Path) -> None:
    dataset = _with_records(written(tmp_path, vocabulary)[0], vocabulary)
    split = dataset.split("train")
    wrong = Split(split.records, split.bases + 1, split.tokens, split.longest_record - 1, split.soft_masked, {}, split.shards)  # fmt: skip
    Dataset(tmp_path, "", "", vocabulary, True, [], {}, {}, {}, {"train": wrong}, BLOCK).save(tmp_path)
    faults = verify(load_dataset(tmp_path))
    assert [fault.split(": ")[1] for fault in faults] == [
        f"dataset.json says {split.bases + 1:,} bases, its shards have {split.bases:,}.",
        f"dataset.json says {split.longest_record - 1:,} bases in its longest record, its shards have {split.longest_record:,}.",
    ]


def test_another_dtype_than_the_vocabulary_needs_is_refused(tmp_path: Path) -> None:
    import json

    from dnascale.files import json_digest

    written(tmp_path, load_vocabulary("kmer:6"))
    body = json.loads((tmp_path / "dataset.json").read_text())
    body["dtype"] = "uint8"
    body.pop("sha256")
    (tmp_path / "dataset.json").write_text(json.dumps(body | {"sha256": json_digest(body)}))
    with pytest.raises(DataError, match="says dtype 'uint8', its vocabulary needs uint16"):
        load_dataset(tmp_path)


@pytest.fixture(scope="module")
def sixmers(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("sixmers") / "data"
    return prepare(["builtin:human-cds"], folder, PrepareOptions(valid=0.05, tokenizer="kmer:6"))


def test_prepared_data_hold_the_same_letters_as_those_of_characters(sixmers: Dataset, human_cds: Dataset) -> None:
    assert verify(sixmers) == []
    assert (sixmers.dtype, human_cds.dtype) == (np.uint16, np.uint8)
    letters = sum(split.bases for split in human_cds.splits.values())
    assert sum(split.bases for split in sixmers.splits.values()) == letters
    mine, theirs = (
        {record.tobytes() for split in one.splits for record in split_records(one, split)}
        for one in (sixmers, human_cds)
    )
    assert mine == theirs


@pytest.mark.parametrize("workers", [0, 1])
def test_the_stream_yields_tokens_of_two_bytes(sixmers: Dataset, workers: int) -> None:
    stream = TrainStream.open(sixmers.folder, 64, 16, accumulation=2, workers=workers)
    reader = WindowReader(load_dataset(sixmers.folder), "train", 64)
    for _ in range(5):
        for batch in stream.next_step():
            assert batch.tokens.dtype == torch.uint16
            assert torch.equal(batch.tokens, reader.read(batch.windows))
            assert int(batch.tokens.long().max()) < len(sixmers.vocabulary)


def test_other_peoples_training_loops_get_them_too(sixmers: Dataset) -> None:
    windows = WindowDataset.open(sixmers.folder, 64)
    masking = Masking(sixmers.vocabulary, 0.2, 0.8, 0.1, False, 1.0)
    batch = MaskingCollator(masking)(windows.__getitems__(range(8)))
    assert batch["input_ids"].shape == (8, 64)
    predicted = batch["labels"] >= 0
    assert int(predicted.sum()) == 8 * masking.count(64)
    assert (batch["labels"][predicted] >= CHARACTER.mask).float().mean() > 0.9  # k-mers, but for a few letters
