"""`dnascale data verify` finds every fault of every file at once, and says which byte or which count it is."""

import hashlib
import io
import os
import shutil
import signal
import sys
import tarfile
import threading
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import serving

from dnascale.data.shards import BLOCK_ROW, Dataset, Index, Shard, Split, block_offset, load_dataset
from dnascale.data.verify import one_byte_errors, opened_to_verify, verify
from dnascale.data.writer import ShardWriter
from dnascale.vocab import CHARACTER, SOFT_MASK_BIT

BLOCK = 512  # tokens; the smallest whole number of tar blocks
SEP = np.array([CHARACTER.sep], dtype=np.uint8)
#: Over two shards of two blocks and a last one of a short block: records of every kind of place run over their ends.
LENGTHS = [1, 700, 2, 319, 1300, 40]


def random_records(lengths: Sequence[int], soft_mask: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    bits = (SOFT_MASK_BIT * (rng.random(length) < 0.2) if soft_mask else 0 for length in lengths)
    return [(rng.integers(0, 5, length) | bit).astype(np.uint8) for length, bit in zip(lengths, bits, strict=True)]


def describe(folder: Path, records: list[np.ndarray], index: Index, **more: Any) -> Dataset:
    """Saves `dataset.json` with the right counts, and loads the data set."""
    bases = sum(map(len, records))
    soft_masked = sum(int((record >> 7).sum()) for record in records)
    split = Split(len(records), bases, bases + len(records), max(map(len, records)), soft_masked, {}, index)
    Dataset(folder, "tiny", "a test", CHARACTER, more.pop("soft_mask_bit", False), [], {}, {}, {}, {"train": split}, BLOCK, **more).save(folder)  # fmt: skip
    return load_dataset(folder)


def of_blocks(folder: Path, records: list[np.ndarray], **more: Any) -> Dataset:
    writer = ShardWriter(folder, "train", block_tokens=BLOCK, shard_blocks=2)
    held: list[set[int]] = []
    for number, record in enumerate(records):
        tokens = np.concatenate([record, SEP])
        while len(tokens):
            shard = writer.position[0]
            held += [set() for _ in range(shard + 1 - len(held))]
            piece, tokens = tokens[: writer.room], tokens[writer.room :]
            if piece.tobytes() != SEP.tobytes():
                held[shard].add(number)
            writer.write(piece)
    shards = [replace(shard, records=len(of)) for shard, of in zip(writer.close(), held, strict=True)]
    return describe(folder, records, Index.of(shards, writer.names), **more)


def of_records(folder: Path, members: list[bytes], translate: bytes | None = None) -> Dataset:
    """Tars that others made, two records each, none of them of the form that we would write."""
    shards = []
    for number in range(0, len(members), 2):
        path = folder / f"{number}.tar"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for key, content in enumerate(members[number : number + 2]):
                member = tarfile.TarInfo(f"{number + key:03d}.seq")
                member.size, member.mtime, member.uname = len(content), 1_700_000_000, "somebody"
                tar.addfile(member, io.BytesIO(content))
        with tarfile.open(path) as tar:
            rows = [(m.offset_data, m.size, zlib.crc32(members[number + k])) for k, m in enumerate(tar.getmembers())]
        blocks = np.array(rows, dtype=BLOCK_ROW)
        tokens = int(blocks["tokens"].sum()) + len(rows)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        shards.append(Shard(str(path), path.stat().st_size, digest, tokens, len(rows), blocks))
    records = [np.frombuffer(member.translate(translate), dtype=np.uint8) for member in members]
    return describe(folder, records, Index.of(shards), layout="records", translate=translate)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return of_blocks(tmp_path, random_records(LENGTHS))


@pytest.fixture
def letters(tmp_path: Path) -> Dataset:
    members = [b"ACGTN" * 20, b"acgt", b"", b"G" * 600, b"TTTT"]
    return of_records(tmp_path, members, CHARACTER.byte_table)


def paths(dataset: Dataset) -> list[Path]:
    return [dataset.folder / shard.name for shard in dataset.split("train").shards]


def change(path: Path, *places: int, xor: int = 0x41) -> None:
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= xor
    path.write_bytes(content)


def expected(path: Path, place: int, where: str, xor: int = 0x41) -> str:
    """The sentence for a byte that has been changed."""
    value = path.read_bytes()[place]
    return f"{path}: byte {place:,} ({where}) is 0x{value:02x} and should be 0x{value ^ xor:02x}."


def with_counts(dataset: Dataset, **counts: Any) -> Dataset:
    """The data set saved with other counts of its split. The index is mapped, and must not be written over."""
    for file in dataset.folder.glob("train/*.npy"):
        file.unlink()
    replace(dataset, splits={"train": replace(dataset.split("train"), **counts)}).save(dataset.folder)
    return load_dataset(dataset.folder)


def with_shard(dataset: Dataset, number: int, **values: Any) -> Dataset:
    """The data set saved with another row of the index."""
    index = dataset.split("train").shards
    shards = list(index)
    shards[number] = replace(shards[number], **values)
    names = index.names if isinstance(index.names, str) else None
    return with_counts(dataset, shards=Index.of(shards, names))


# --- nothing wrong ---


def test_data_sets_that_are_right_have_no_faults(tmp_path: Path, letters: Dataset) -> None:
    read: list[int] = []
    for name, lengths, soft_mask in [
        ("records over shard ends", LENGTHS, False),
        ("soft mask", LENGTHS, True),
        ("a separator alone in its shard", [1024, 5], False),
        ("one record in four shards", [4000], False),
        ("shards that end with a record", [1023, 511, 511, 3], False),
        ("one base", [1], False),
    ]:
        dataset = of_blocks(tmp_path / name, random_records(lengths, soft_mask), soft_mask_bit=soft_mask)
        read.clear()
        assert verify(dataset, read.append) == []
        assert sum(read) == sum(shard.bytes for shard in dataset.split("train").shards)
    assert verify(letters) == []
    (tmp_path / "ids").mkdir()
    assert verify(of_records(tmp_path / "ids", [record.tobytes() for record in random_records(LENGTHS)])) == []


@pytest.mark.parametrize("size", [7, 512, 1000, 5000])
def test_it_does_not_matter_in_what_pieces_files_are_read(
    tmp_path: Path, letters: Dataset, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnascale.data.verify._PIECE", size)
    dataset = of_blocks(tmp_path / "blocks", random_records(LENGTHS, soft_mask=True), soft_mask_bit=True)
    for one in (dataset, letters):
        assert verify(one) == []
        shard, path = one.split("train").shards[0], paths(one)[0]
        places = (shard.blocks["offset"] + shard.blocks["tokens"] - 1).tolist()
        change(path, *places)
        tokens = (shard.blocks["tokens"] - 1).tolist()
        assert verify(one) == [
            expected(path, place, f"block {block}, token {token}")
            for block, (place, token) in enumerate(zip(places, tokens, strict=True))
        ]


def test_an_interrupt_stops_every_thread(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnascale.data.verify._PIECE", 7)
    calls, main = 0, threading.get_ident()

    def progress(_bytes: int) -> None:
        nonlocal calls
        calls += 1
        time.sleep(0.001)
        if calls == 5:
            signal.pthread_kill(main, signal.SIGINT)  # Ctrl-C

    with pytest.raises(KeyboardInterrupt):
        verify(dataset, progress)
    assert calls < 100  # of a thousand


def test_a_tar_without_records_is_none_the_worse(letters: Dataset) -> None:
    index = letters.split("train").shards
    with tarfile.open(letters.folder / "none.tar", "w"):
        pass
    content = (letters.folder / "none.tar").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    none = Shard("none.tar", len(content), digest, 0, 0, np.zeros(0, dtype=BLOCK_ROW))
    assert verify(with_counts(letters, shards=Index.of([*index, none]))) == []


def test_a_data_set_behind_a_url(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as server:
        for path in dataset.folder.rglob("*.*"):
            server.files[f"/set/{path.relative_to(dataset.folder)}"] = path.read_bytes()
        url, cache = f"{server.url}/set", tmp_path / "home" / "cache"
        monkeypatch.setenv("DNASCALE_CACHE", str(cache))
        assert verify(load_dataset(url)) == []
        with opened_to_verify(url) as there:
            assert verify(there) == []
        # What the cache still has says nothing of what is there.
        del server.files["/set/train/shard-000001.tar"]
        with opened_to_verify(url) as there:
            (fault,) = verify(there)
        assert f"{url}/train/shard-000001.tar" in fault
        assert not list(cache.glob("dnascale-verify-*"))


def test_no_more_of_a_url_is_kept_to_verify_it_than_what_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnascale.data import verify as module

    many = of_blocks(tmp_path / "many", random_records([900] * 40))
    monkeypatch.setattr(module, "_THREADS", 2)
    monkeypatch.setenv("DNASCALE_CACHE", str(tmp_path / "cache"))
    most = 0

    def look(_bytes: int) -> None:
        nonlocal most
        most = max(most, len(list(tmp_path.glob("cache/dnascale-verify-*/*/train/*.tar"))))

    with opened_to_verify(many.folder.as_uri()) as there:
        assert verify(there, look) == []
    assert 0 < most <= 10 < len(many.splits["train"].shards) / 3


def test_what_prepare_writes_has_no_faults(human_cds: Dataset) -> None:
    assert verify(human_cds) == []


# --- one wrong byte ---


@pytest.mark.parametrize("token", [0, 1, 300, 511])
@pytest.mark.parametrize(("shard", "block"), [(0, 0), (0, 1), (1, 0)])
def test_a_wrong_byte_is_said_with_its_right_value(dataset: Dataset, shard: int, block: int, token: int) -> None:
    path, place = paths(dataset)[shard], block_offset(block, BLOCK) + token
    change(path, place)
    assert verify(dataset) == [expected(path, place, f"block {block}, token {token}")]


def test_a_wrong_byte_of_the_last_short_block(dataset: Dataset) -> None:
    path, tokens = paths(dataset)[-1], dataset.split("train").shards[-1].tokens
    assert tokens % BLOCK
    for token in (0, tokens - 1):
        change(path, BLOCK + token, xor=0x80)
        assert verify(dataset) == [expected(path, BLOCK + token, f"block 0, token {token}", xor=0x80)]
        change(path, BLOCK + token, xor=0x80)
    assert verify(dataset) == []


def test_a_wrong_byte_of_a_block_of_usual_size(human_cds: Dataset, tmp_path: Path) -> None:
    shutil.copytree(human_cds.folder, tmp_path / "data")
    dataset = load_dataset(tmp_path / "data")
    (path,) = paths(dataset)
    change(path, 1_500_000)
    token = 1_500_000 - block_offset(1)
    assert verify(dataset) == [expected(path, 1_500_000, f"block 1, token {token:,}")]


@pytest.mark.parametrize("place", [0, 124, 511, 1024, 1535])
def test_a_wrong_byte_of_a_tar_header(dataset: Dataset, place: int) -> None:
    change(paths(dataset)[1], place)
    assert verify(dataset) == [expected(paths(dataset)[1], place, f"tar header of block {place // 1024}")]


def test_a_wrong_byte_behind_the_last_block(dataset: Dataset) -> None:
    for path, shard in zip(paths(dataset), dataset.split("train").shards, strict=True):
        end = int(shard.blocks["offset"][-1] + shard.blocks["tokens"][-1])
        for place in (end, shard.bytes - 1025, shard.bytes - 1024, shard.bytes - 1):
            if place >= end:  # only a short block is padded
                change(path, place)
                assert verify(dataset) == [expected(path, place, "end of the tar")]
                change(path, place)


@given(st.binary(min_size=1, max_size=3000), st.data())
def test_a_syndrome_leads_to_every_byte(content: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(content) - 1))
    xor = data.draw(st.integers(1, 255))
    changed = bytearray(content)
    changed[place] ^= xor
    errors = one_byte_errors(zlib.crc32(content) ^ zlib.crc32(changed), len(content))
    assert (place, xor) in errors
    for other, value in errors:  # all are true: each changes the checksum in this way
        again = bytearray(content)
        again[other] ^= value
        assert zlib.crc32(again) == zlib.crc32(changed)


def test_a_syndrome_is_followed_over_more_bytes_than_are_looked_at_in_one_go() -> None:
    length = (2 << 20) + 77
    for place in (0, 76, 77, 1 << 20, length - 1):
        content = bytearray(length)
        right = zlib.crc32(content)
        content[place] = 7
        assert (place, 7) in one_byte_errors(zlib.crc32(content) ^ right, length)


# --- more damage ---


def test_two_wrong_bytes_of_a_block_are_said_by_block(dataset: Dataset) -> None:
    change(paths(dataset)[0], 1600, 1700)
    assert verify(dataset) == [f"{paths(dataset)[0]}: block 1 (bytes 1,536 to 2,048) does not match its checksum."]


def test_several_wrong_bytes_of_a_tar_header(dataset: Dataset) -> None:
    path = paths(dataset)[0]
    change(path, 1030, 1040, 1050)
    sentence = expected(path, 1030, "tar header of block 1")[:-1]
    assert verify(dataset) == [f"{sentence}; 2 more bytes there are wrong."]


def test_all_damage_of_a_file_is_said_in_its_order(dataset: Dataset) -> None:
    path = paths(dataset)[0]
    size = path.stat().st_size
    change(path, 700, 1030, 2000, size - 3)
    assert verify(dataset) == [
        expected(path, 700, "block 0, token 188"),
        expected(path, 1030, "tar header of block 1"),
        expected(path, 2000, "block 1, token 464"),
        expected(path, size - 3, "end of the tar"),
    ]
    change(path, 2001)  # now nothing proves which byte of block 0 it is
    assert verify(dataset) == [
        f"{path}: block 0 (bytes 512 to 1,024) does not match its checksum.",
        expected(path, 1030, "tar header of block 1"),
        f"{path}: block 1 (bytes 1,536 to 2,048) does not match its checksum.",
        expected(path, size - 3, "end of the tar"),
    ]


def test_blocks_that_changed_places(dataset: Dataset) -> None:
    path = paths(dataset)[0]
    content = path.read_bytes()
    path.write_bytes(content[:512] + content[1536:2048] + content[1024:1536] + content[512:1024] + content[2048:])
    assert verify(dataset) == [
        f"{path}: block 0 (bytes 512 to 1,024) does not match its checksum.",
        f"{path}: block 1 (bytes 1,536 to 2,048) does not match its checksum.",
    ]


def test_all_faults_of_all_files_are_found(dataset: Dataset) -> None:
    first, second, third = paths(dataset)
    change(first, 600)
    second.unlink()
    third.write_bytes(third.read_bytes()[:-1])
    wrong = with_counts(dataset, tokens=9, records=8)
    split = dataset.split("train")
    assert verify(wrong) == [
        expected(first, 600, "block 0, token 88"),
        f"{second} is missing.",
        f"{third} has 2,047 bytes, the index says 2,048: its end is missing.",
        f"{dataset.folder}, split 'train': dataset.json says 9 tokens, its shards have {split.tokens:,}.",
        f"{dataset.folder}, split 'train': {split.bases:,} bases and 8 separators are not the {split.tokens:,} tokens of "
        "its shards.",
    ]


# --- files of another size, or none ---


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        (0, "it is cut off in block 0"),
        (100, "it is cut off in block 0"),
        (1023, "it is cut off in block 0"),
        (1024, "it is cut off in block 1"),
        (2047, "it is cut off in block 1"),
        (2048, "its end is missing"),
        (3071, "its end is missing"),
    ],
)
def test_a_file_that_is_cut_off(dataset: Dataset, size: int, reason: str) -> None:
    path = paths(dataset)[1]
    path.write_bytes(path.read_bytes()[:size])
    assert verify(dataset) == [f"{path} has {size:,} bytes, the index says 3,072: {reason}."]


def test_a_file_that_is_cut_off_and_damaged(dataset: Dataset) -> None:
    path = paths(dataset)[0]
    path.write_bytes(path.read_bytes()[:2000])
    change(path, 3, 700, 1900)
    assert verify(dataset) == [
        f"{path} has 2,000 bytes, the index says 3,072: it is cut off in block 1.",
        expected(path, 3, "tar header of block 0"),
        f"{path}: block 0 (bytes 512 to 1,024) does not match its checksum.",
    ]


def test_a_file_that_is_too_long(dataset: Dataset) -> None:
    path = paths(dataset)[0]
    path.write_bytes(path.read_bytes() + b"x")
    too_long = f"{path} has 3,073 bytes, the index says 3,072: something follows its end."
    assert verify(dataset) == [too_long]
    change(path, 1900)
    assert verify(dataset) == [too_long, expected(path, 1900, "block 1, token 364")]


def test_files_that_cannot_be_read(dataset: Dataset) -> None:
    first, second, third = paths(dataset)
    for path in (first, second, third):
        path.unlink()
    first.mkdir()
    second.symlink_to(second)
    third.symlink_to("nowhere")
    assert verify(dataset) == [
        f"{first} cannot be read: Is a directory.",
        f"{second} cannot be read: Too many levels of symbolic links.",
        f"{third} is missing.",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_file_whose_bytes_cannot_be_read(dataset: Dataset) -> None:
    path = paths(dataset)[0]
    path.unlink()
    path.symlink_to("/proc/self/mem")  # opens, and fails to read at address 0
    assert verify(dataset) == [f"{path} cannot be read: Input/output error."]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(dataset: Dataset) -> None:
    paths(dataset)[0].chmod(0)
    assert verify(dataset) == [f"{paths(dataset)[0]} cannot be read: Permission denied."]


# --- counts ---


def test_wrong_counts_of_a_split(tmp_path: Path) -> None:
    dataset = of_blocks(tmp_path, random_records(LENGTHS, soft_mask=True), soft_mask_bit=True)
    split = dataset.split("train")
    for name, what in [
        ("tokens", "tokens"),
        ("records", "records"),
        ("bases", "bases"),
        ("longest_record", "bases in its longest record"),
        ("soft_masked", "soft-masked bases"),
    ]:
        right = getattr(split, name)
        assert verify(with_counts(dataset, **{name: right + 1})) == [
            f"{tmp_path}, split 'train': dataset.json says {right + 1:,} {what}, its shards have {right:,}."
        ]


def test_wrong_counts_of_a_shard(dataset: Dataset) -> None:
    path, shard = paths(dataset)[1], dataset.split("train").shards[1]
    assert verify(with_shard(dataset, 1, records=7)) == [
        f"{path}: the index says 7 records, it holds parts of {shard.records}."
    ]
    split = with_shard(dataset, 1, tokens=1000).split("train")
    assert verify(load_dataset(dataset.folder)) == [
        f"{path}: the index says 1,000 tokens, its blocks have 1,024.",
        f"{dataset.folder}, split 'train': dataset.json says {split.tokens:,} tokens, its shards have {split.tokens - 24:,}.",
        f"{dataset.folder}, split 'train': dataset.json says {split.bases:,} bases, its shards have {split.bases - 24:,}.",
    ]


def test_wrong_size_and_digests_of_a_shard(dataset: Dataset) -> None:
    path, shard = paths(dataset)[1], dataset.split("train").shards[1]
    assert verify(with_shard(dataset, 1, bytes=3000)) == [
        f"{path} has 3,072 bytes, the index says 3,000: something follows its end.",
        f"{path}: it does not match its SHA-256, though its blocks match their checksums.",
    ]
    assert verify(with_shard(dataset, 1, bytes=3072, sha256="00" * 32)) == [
        f"{path}: it does not match its SHA-256, though its blocks match their checksums."
    ]
    blocks = shard.blocks.copy()
    blocks["crc32"][1] ^= 1
    assert verify(with_shard(dataset, 1, sha256=shard.sha256, blocks=blocks)) == [
        f"{path}: the index has a wrong checksum of block 1."
    ]


@pytest.mark.parametrize(
    ("block", "field", "value"), [(0, "offset", 0), (1, "offset", 1024), (1, "offset", 1 << 62), (0, "tokens", 511)]
)
def test_blocks_at_impossible_places(dataset: Dataset, block: int, field: str, value: int) -> None:
    path, blocks = paths(dataset)[0], dataset.split("train").shards[0].blocks.copy()
    blocks[field][block] = value
    begin, tokens, _ = blocks[block].tolist()
    wrong = with_shard(dataset, 0, blocks=blocks, tokens=int(blocks["tokens"].sum()))
    wrong = with_counts(wrong, tokens=int(wrong.split("train").shards.tokens.sum()))
    change(path, 600)
    split = wrong.split("train")
    sums = f"{split.bases:,} bases and {split.records} separators are not the {split.tokens:,} tokens of its shards"
    assert verify(wrong) == [
        f"{path}: the index says bytes {begin:,} to {begin + tokens:,} of block {block}, which cannot be.",
        f"{path}: it does not match its SHA-256.",
        *([f"{dataset.folder}, split 'train': {sums}."] if field == "tokens" else []),
    ]


def test_rows_of_blocks_that_belong_to_no_shard(dataset: Dataset) -> None:
    index = dataset.split("train").shards
    rows = np.concatenate([index.blocks, index.blocks[:1]])
    assert verify(with_counts(dataset, shards=replace(index, blocks=rows))) == [
        f"{dataset.folder}, split 'train': blocks.npy has 6 rows, its shards have 5 blocks."
    ]


def test_tokens_outside_the_vocabulary(tmp_path: Path) -> None:
    records = random_records(LENGTHS)
    for value in (len(CHARACTER), SOFT_MASK_BIT):
        records[1][3] = value
        dataset = of_blocks(tmp_path / str(value), records)
        assert verify(dataset) == [f"{paths(dataset)[0]}: it has tokens up to {value}, the vocabulary ends at 22."]


# --- the files of records ---


@pytest.fixture
def prepared(human_cds: Dataset, tmp_path: Path) -> Dataset:
    shutil.copytree(human_cds.folder / "valid", tmp_path / "data" / "valid")
    replace(human_cds, splits={"valid": human_cds.split("valid")}).save(tmp_path / "data")
    return load_dataset(tmp_path / "data")


@pytest.fixture
def records_file(prepared: Dataset) -> Path:
    return prepared.folder / "valid" / "shard-000000.records.parquet"


def test_a_file_of_records_that_is_damaged_or_gone(prepared: Dataset, records_file: Path) -> None:
    content = records_file.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], b"", content[:100] + bytes(500) + content[600:]):
        records_file.write_bytes(damaged)
        assert verify(prepared) == [f"{records_file} cannot be read: it is damaged."]
    records_file.unlink()
    records_file.symlink_to("nowhere")
    gone = f"{records_file} cannot be read: No such file or directory."
    assert verify(prepared) == [gone]
    shard = prepared.folder / prepared.split("valid").shards[0].name
    shard.unlink()
    assert verify(prepared) == [f"{shard} is missing.", gone]
    records_file.unlink()  # never needed
    assert verify(prepared) == [f"{shard} is missing."]


def test_checksums_of_a_file_of_records_are_compared(prepared: Dataset, records_file: Path) -> None:
    import pyarrow.parquet as pq

    rows = pq.read_table(records_file)
    pq.write_table(rows, records_file, compression="none", write_page_checksum=True, write_statistics=False)
    assert verify(prepared) == []
    content = records_file.read_bytes()
    change(records_file, content.index(rows.column("record")[7].as_py().encode()), xor=1)
    assert verify(prepared) == [f"{records_file} cannot be read: it is damaged."]


def test_a_file_of_records_that_belongs_to_other_tokens(prepared: Dataset, records_file: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(records_file)
    begin, length = (rows.column(name).to_pylist() for name in ("shard_start", "length"))
    pq.write_table(rows.slice(1), records_file)
    assert verify(prepared) == [
        f"{records_file} has {len(rows) - 1:,} rows, its shard holds parts of {len(rows):,} records."
    ]
    longer = pa.array([*length[:5], length[5] + 1, *length[6:]])
    pq.write_table(rows.set_column(rows.schema.get_field_index("length"), "length", longer), records_file)
    end = begin[5] + length[5]
    assert verify(prepared) == [
        f"{records_file}: row 5 says tokens {begin[5]:,} to {end + 1:,} of the shard, the record has {begin[5]:,} to {end:,}."
    ]
    pq.write_table(rows.drop_columns("length"), records_file)
    assert verify(prepared) == [f"{records_file} cannot be read: it is damaged."]


# --- tars that others made ---


def test_a_wrong_byte_of_a_record(letters: Dataset) -> None:
    path, shard = paths(letters)[0], letters.split("train").shards[0]
    begin, tokens, _ = shard.blocks[0].tolist()
    for token in (0, tokens - 1):
        change(path, begin + token)
        assert verify(letters) == [expected(path, begin + token, f"block 0, token {token}")]
        change(path, begin + token)
    change(path, begin, begin + 1)
    where = f"block 0 (bytes {begin:,} to {begin + tokens:,})"
    assert verify(letters) == [f"{path}: {where} does not match its checksum."]


def test_damage_around_records(letters: Dataset) -> None:
    path, shard = paths(letters)[0], letters.split("train").shards[0]
    begin, tokens, _ = shard.blocks[1].tolist()
    header = f"{path}: the tar header of block 1 (bytes {begin - 512:,} to {begin:,}) does not match its own checksum."
    change(path, begin - 500)
    assert verify(letters) == [header]
    change(path, begin)  # a byte of the record cannot be proved while the header's is not known
    assert verify(letters) == [
        header,
        f"{path}: block 1 (bytes {begin:,} to {begin + tokens:,}) does not match its checksum.",
    ]
    change(path, begin - 500, begin)
    change(path, begin + tokens)
    assert verify(letters) == [
        f"{path}: it does not match its SHA-256, though its blocks match their checksums: a tar header or padding is damaged."
    ]


def test_the_header_of_an_array_is_no_header_of_a_tar(tmp_path: Path) -> None:
    arrays = [np.array(values, dtype=np.uint8) for values in ([0, 1, 2, 3], [3, 2, 1])]
    members = []
    for array in arrays:
        file = io.BytesIO()
        np.save(file, array)
        members.append(file.getvalue())
    dataset = of_records(tmp_path, members)
    blocks = dataset.split("train").shards[0].blocks.copy()
    for row, array in zip(blocks, arrays, strict=True):  # only the tokens are in the index
        row["offset"] += row["tokens"] - len(array)
        row["tokens"], row["crc32"] = len(array), zlib.crc32(array.data)
    dataset = with_shard(dataset, 0, blocks=blocks, tokens=9)
    dataset = with_counts(dataset, tokens=9, bases=7, longest_record=4)
    assert verify(dataset) == []
    place = int(blocks["offset"][1])
    change(paths(dataset)[0], place, place + 1)
    where = f"block 1 (bytes {place:,} to {place + 3:,})"
    assert verify(dataset) == [f"{paths(dataset)[0]}: {where} does not match its checksum."]


def test_wrong_counts_of_records(letters: Dataset) -> None:
    path = paths(letters)[1]
    assert verify(with_shard(letters, 1, records=3)) == [f"{path}: the index says 3 records, it holds parts of 2."]
    blocks = letters.split("train").shards[1].blocks.copy()
    blocks["offset"][1] = blocks["offset"][0]  # the first is empty, so that this is possible, and the content another
    assert verify(with_shard(letters, 1, records=2, blocks=blocks)) == [
        f"{path}: the index has a wrong checksum of block 1."
    ]
    blocks["offset"][1] = 100_000
    assert verify(with_shard(letters, 1, blocks=blocks)) == [
        f"{path}: the index says bytes 100,000 to 100,600 of block 1, which cannot be."
    ]


def test_separators_and_unknown_ids_inside_records(tmp_path: Path) -> None:
    dataset = of_records(tmp_path, [bytes([0, 1, CHARACTER.sep, 2]), bytes([3, 200])])
    assert verify(dataset) == [
        f"{tmp_path}/0.tar: it has tokens up to 200, the vocabulary ends at 22.",
        f"{tmp_path}/0.tar: separators stand inside its records, 1 of them.",
    ]
