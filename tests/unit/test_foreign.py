"""Tars of other writers, indexed in place: read back as other readers see them, or refused with the place and the reason."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data import foreign
from dnascale.data import tars as tar_files
from dnascale.data.foreign import IndexOptions, find_tars, index
from dnascale.data.mapped import MappedShards
from dnascale.data.read import WindowReader, covering_windows, split_records
from dnascale.data.shards import Dataset, load_dataset
from dnascale.data.stream import TrainStream
from dnascale.data.verify import verify
from dnascale.errors import DataError, DnascaleError, SpaceError, UsageError
from dnascale.vocab import CHARACTER

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
AUTO = IndexOptions()
SEP = CHARACTER.tokens.index("[SEP]")

Members = Iterable[tuple[str, bytes]]


def write_tar(path: Path, members: Members, format: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sequences(seed: int, count: int = 30, longest: int = 3000) -> list[bytes]:
    """Text in upper and lower case, of lengths around the sizes of tar blocks and of pages."""
    rng = random.Random(seed)
    lengths = [1, 511, 512, 513, 1024, 4096, *(rng.randint(1, longest) for _ in range(count)), 1, 512]
    return [bytes(rng.choices(b"ACGTacgtNnRYUi", weights=[9] * 4 + [3] * 4 + [1] * 6, k=n)) for n in lengths]


def ids(text: bytes) -> list[int]:
    """By the vocabulary's list alone."""
    return [CHARACTER.tokens.index(c if c == "i" else c.upper()) for c in text.decode()]


def stream_of(records: Iterable[list[int]]) -> list[int]:
    return [token for record in records for token in (*record, SEP)]


def npy(values: Any, dtype: str = "u1", **how: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.array(values, dtype=dtype), **how)
    return out.getvalue()


def one(path: Path, content: bytes, suffix: str = "txt") -> dict[str, list[Path]]:
    """The content as the second of three samples."""
    fine = {"txt": b"ACGT", "bin": bytes(4), "npy": npy([0] * 4)}[suffix.rpartition(".")[2]]
    members = [(f"a.{suffix}", fine), (f"b.{suffix}", content), (f"c.{suffix}", fine)]
    return {"train": [write_tar(path, members)]}


def check(dataset: Dataset, split: str, of_tars: list[list[list[int]]]) -> None:
    """Every way of reading gives these records, of each tar, and nothing is damaged."""
    streams = [stream_of(records) for records in of_tars]
    assert MappedShards(dataset, split).tokens.tolist() == [len(stream) for stream in streams]
    mapped = MappedShards(dataset, split)
    for number, stream in enumerate(streams):
        assert mapped.stream(number).tolist() == stream
    for context in (1, 2, 64, 700):
        if max(map(len, streams)) < context:
            break
        reader = WindowReader(dataset, split, context)
        windows, _ = covering_windows(mapped.tokens, context)
        read = reader.read(windows).tolist()
        for tokens, shard, start in zip(read, windows.shard.tolist(), windows.start.tolist(), strict=True):
            assert tokens == streams[shard][start : start + context]
    records = [record for of_tar in of_tars for record in of_tar]
    assert [record.tolist() for record in split_records(dataset, split)] == records
    described = dataset.split(split)
    assert (described.records, described.bases) == (len(records), sum(map(len, records)))
    assert described.tokens == sum(map(len, streams))
    assert described.longest_record == max(map(len, records))
    counts = Counter(CHARACTER.tokens[token] for record in records for token in record)
    assert described.composition == dict(counts)
    assert verify(dataset) == []


# --- read back ---


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
@pytest.mark.parametrize("format", FORMATS)
def test_text_reads_as_its_letters_and_a_separator_after_each_sequence(tmp_path: Path, format: int, end: bytes) -> None:
    folders = ["", "./", "a/b.c/", "long/" * 30, "é/", "x" * 150 + "/"]
    if format == tarfile.USTAR_FORMAT:
        folders = ["", "./", "a/b.c/", "long/" * 18]
    texts = [sequences(seed) for seed in (1, 2, 3)]
    paths = [
        write_tar(
            tmp_path / "tars" / f"{number}.tar",
            [
                member
                for at, text in enumerate(of_tar)
                for member in (
                    (f"{folders[at % len(folders)]}{number}-{at}.json", b'{"a": 1}'),
                    (f"{folders[at % len(folders)]}{number}-{at}.txt", text + end),
                )
            ],
            format,
        )
        for number, of_tar in enumerate(texts)
    ]
    dataset = index({"train": paths[:2], "valid": paths[2:]}, tmp_path / "data", AUTO)
    check(dataset, "train", [[ids(text) for text in of_tar] for of_tar in texts[:2]])
    check(dataset, "valid", [[ids(text) for text in texts[2]]])
    lower = [sum(c in b"acgtnryu" for c in b"".join(chain)) for chain in (texts[0] + texts[1], texts[2])]
    assert [dataset.split(name).soft_masked for name in ("train", "valid")] == lower
    assert not dataset.soft_mask_bit
    assert dataset.split("train").shards.names == tuple(map(str, paths[:2]))


def test_what_webdataset_writes_and_reads_is_what_we_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    texts, path = sequences(4), tmp_path / "a.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for at, text in enumerate(texts):
            writer.write({"__key__": f"k/{at}", "SEQ": text, "json": {"length": len(text)}, "tokens": bytes(ids(text))})
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["seq"] for sample in samples] == texts
    with pytest.raises(DataError, match=r"sample 'k/0' has several members.*\('seq', 'tokens'\).*--suffix"):
        index({"train": [path]}, tmp_path / "none", AUTO)
    for suffix in ("seq", ".SEQ", "tokens"):
        dataset = index({"train": [path]}, tmp_path / suffix, IndexOptions(suffix=suffix))
        check(dataset, "train", [[ids(sample["seq"]) for sample in samples]])
        assert dataset.soft_mask_bit is False


def test_training_batches_hold_the_tokens_of_their_addresses(tmp_path: Path) -> None:
    texts = [sequences(seed, count=200) for seed in (5, 6)]
    tars = [
        write_tar(tmp_path / f"{n}.tar", [(f"{n}-{at}.txt", text) for at, text in enumerate(of_tar)])
        for n, of_tar in enumerate(texts)
    ]
    truth = [stream_of(ids(text) for text in of_tar) for of_tar in texts]
    index({"train": tars}, tmp_path / "data", AUTO)
    stream = TrainStream.open(tmp_path / "data", context=96, global_windows=32, seed=3)
    seen = set()
    for batch in stream:
        windows = batch.windows
        for shard, start, tokens in zip(windows.shard, windows.start, batch.tokens.tolist(), strict=True):
            assert tokens == truth[shard][start : start + 96]
            seen.add((int(shard), int(start)))
    assert len(seen) >= sum(len(tokens) // 96 - 1 for tokens in truth)


@pytest.mark.parametrize(
    ("suffix", "store", "alphabet"),
    [
        ("bin", bytes, None),
        ("tokens", bytes, None),
        ("npy", npy, None),
        ("npy", lambda values: npy(values, "i1"), None),
        ("npy", lambda values: npy(values, version=(2, 0)), None),
        ("bin", bytes, "ATCGN"),
        ("bin", bytes, "ACGTN"),
        ("npy", npy, "NTGCAtgca"),
    ],
)
def test_token_arrays_read_as_the_letters_of_their_ids(
    tmp_path: Path, suffix: str, store: Callable[[list[int]], bytes], alphabet: str | None
) -> None:
    rng = random.Random(7)
    letters = alphabet or "".join(CHARACTER.tokens[: CHARACTER.bases])
    records = [[rng.randrange(len(letters)) for _ in range(n)] for n in (1, 512, 384, 1000, 4096, 77, 128)]
    path = write_tar(tmp_path / "a.tar", [(f"{at}.{suffix}", store(record)) for at, record in enumerate(records)])
    dataset = index({"train": [path]}, tmp_path / "data", IndexOptions(alphabet=alphabet))
    check(dataset, "train", [[ids("".join(letters[i] for i in record).encode()) for record in records]])
    assert (dataset.translate is None) == (alphabet in (None, "ATCGN"))
    lower = sum(letters[i].islower() for record in records for i in record if alphabet)
    assert dataset.split("train").soft_masked == lower
    assert dataset.options == {"suffix": suffix, "alphabet": alphabet}


def test_sequences_of_many_sizes_are_counted_and_hashed_whatever_the_size_of_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    lengths = [5, 3 << 20, 7, 1 << 20, (1 << 20) - 1, 1, 900_000, 200_000]
    texts = [np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, n)].tobytes() for n in lengths]
    path = write_tar(tmp_path / "a.tar", [(f"{at}.txt", text) for at, text in enumerate(texts)])
    progress: list[int] = []
    dataset = index({"train": [path]}, tmp_path / "data", AUTO, progress.append)
    assert sum(progress) == path.stat().st_size
    assert dataset.split("train").composition == {c: sum(t.count(c.encode()) for t in texts) for c in "ATCG"}
    assert verify(dataset) == []
    read = MappedShards(dataset, "train").stream(0)
    expected = b"\n".join(texts) + b"\n"
    np.testing.assert_array_equal(read == SEP, np.frombuffer(expected, np.uint8) == ord("\n"))
    monkeypatch.setattr(foreign, "_CHUNK", 1000)
    assert index({"train": [path]}, tmp_path / "again", AUTO) == load_dataset(tmp_path / "again")
    assert load_dataset(tmp_path / "again").splits == dataset.splits


def test_members_of_other_kinds_are_left_out_as_webdataset_does_and_links_are_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "global"}) as tar:
        for name, kind in [("__meta__", b"0"), ("__index__/a.txt", b"0"), ("folder", tarfile.DIRTYPE),
                           ("a.txt", b"0"), ("a.json", b"0"), ("README", b"0"), (".hidden.txt", b"0"),
                           ("l.txt", tarfile.SYMTYPE), ("m.txt", tarfile.LNKTYPE), ("p.txt", tarfile.FIFOTYPE),
                           ("b.txt", b"0")]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.txt"
            info.size = 4 if kind == b"0" else 0
            tar.addfile(info, io.BytesIO(b"ACGT"))
    dataset = index({"train": [path]}, tmp_path / "data", AUTO)
    check(dataset, "train", [[ids(b"ACGT")] * 2])
    assert dataset.sources[0]["warnings"] == [
        f"{path}: 2 members were left out, as WebDataset does, for their names have no suffix",
        f"{path}: 2 links were left out, as WebDataset does",
    ]


def test_empty_samples_are_left_out_and_counted_and_the_report_adds_up(tmp_path: Path) -> None:
    a = write_tar(tmp_path / "a.tar", [("a.txt", b""), ("b.txt", b"ACG"), ("c.txt", b"\n"), ("d.txt", b"\r\n")])
    b = write_tar(tmp_path / "b.tar", [("e.txt", b"")])
    c = write_tar(tmp_path / "c.tar", [("f.txt", b"TT\n"), ("g.txt", b"nn")])
    dataset = index({"train": [a, b, c]}, tmp_path / "data", AUTO)
    check(dataset, "train", [[ids(b"ACG")], [], [ids(b"TT"), ids(b"NN")]])
    assert dataset.cleaning == {
        "records_in": 7, "bases_in": 7, "records_out": 3, "bases_out": 7,
        "dropped": {"empty sequence": {"records": 4, "bases": 0}},
    }  # fmt: skip
    assert [(s["name"], s["records"], s["bases"], s["compression"], s["bytes"]) for s in dataset.sources] == [
        ("a.tar", 4, 3, "", a.stat().st_size),
        ("b.tar", 1, 0, "", b.stat().st_size),
        ("c.tar", 2, 4, "", c.stat().st_size),
    ]
    assert dataset.sources[0]["warnings"] == [f"{a}: 3 samples were left out, for they are empty"]
    with pytest.raises(DataError, match=r"valid split has no sequence.*b\.tar"):
        index({"train": [a], "valid": [b]}, tmp_path / "none", AUTO)


def test_a_window_may_end_at_the_last_byte_but_one_of_a_file_that_fills_its_pages(tmp_path: Path) -> None:
    texts = [b"A" * 512, b"C" * (4096 - 4 * 512)]  # header, text, header, text, one zero block: 4,096 bytes
    path = write_tar(tmp_path / "a.tar", [("a.txt", texts[0]), ("b.txt", texts[1])])
    os.truncate(path, 4096)
    dataset = index({"train": [path]}, tmp_path / "data", AUTO)
    check(dataset, "train", [[ids(text) for text in texts]])


# --- names ---


def grouped_by_us(path: Path) -> list[tuple[str, list[str]]]:
    return [(key, list(sample)) for key, sample in tar_files.samples(path, tar_files.mapped_file(path), Counter())]


def grouped_by_webdataset(path: Path) -> list[tuple[str, list[str]]]:
    tariterators = pytest.importorskip("webdataset.tariterators")
    with path.open("rb") as stream:
        files = tariterators.tar_file_expander([{"url": str(path), "stream": stream}])
        samples = list(tariterators.group_by_keys(files))
    own = ("__key__", "__url__", "__local_path__")
    return [(s["__key__"], [name for name in s if name not in own]) for s in samples]


def test_names_are_cut_in_key_and_suffix_as_webdataset_cuts_them(tmp_path: Path) -> None:
    names = ["a/b.c/x.y.seq.txt", "a/b.c/x.json", "./x.txt", "x.txt", "x", ".hidden.txt", "a/.hidden.txt", "x.TXT.Gz", "y..txt",
             "__meta__.txt", "__a__/b.txt", "b/__c__.txt", "NM_000014.6.txt", "NM_000014.5.txt", "a b/c d.txt", "z.", "/q.txt"]  # fmt: skip
    path = write_tar(tmp_path / "a.tar", [(name, b"A") for name in names])
    assert grouped_by_us(path) == grouped_by_webdataset(path)
    assert ("a/b.c/x", ["y.seq.txt", "json"]) in grouped_by_us(path)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("aT._/-\n é", min_size=1, max_size=12), min_size=1, max_size=6), st.sampled_from(FORMATS))
def test_any_names_are_cut_and_grouped_as_webdataset_does(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], format: int
) -> None:
    path = write_tar(tmp_path_factory.mktemp("names") / "a.tar", [(name, b"A") for name in names], format)
    try:
        theirs = grouped_by_webdataset(path)
    except ValueError:  # one name twice in a sample
        theirs = None
    if theirs:
        assert grouped_by_us(path) == theirs
        return
    with pytest.raises(DataError, match="has no samples" if theirs == [] else "twice in one sample"):
        grouped_by_us(path)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab/é.", min_size=1, max_size=300), st.integers(0, 1500)), min_size=1, max_size=5),
    st.sampled_from(FORMATS),
)
def test_headers_are_read_as_tarfile_reads_them(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, int]], format: int
) -> None:
    path = tmp_path_factory.mktemp("headers") / "a.tar"
    try:
        write_tar(path, [(name, bytes(size)) for name, size in members], format)
    except ValueError:  # a name that USTAR cannot hold
        return
    with tarfile.open(path) as tar:
        theirs = [(m.name, m.size, m.offset_data, m.isreg()) for m in tar]
    ours = [(m.name, m.size, m.offset_data, m.isreg()) for m in tar_files.members(path, tar_files.mapped_file(path))]
    assert ours == theirs


def test_sizes_and_names_that_fill_their_fields_are_read_as_tarfile_reads_them(tmp_path: Path) -> None:
    for number, (name, size) in enumerate([("n" * 96 + ".txt", "00000000010\0"), ("a.txt", "000000000010"), ("a.txt", "       10 \0\0"),
                                           ("p" * 60 + "/" + "q" * 60 + ".txt", "00000000010 ")]):  # fmt: skip
        path = write_tar(tmp_path / f"{number}.tar", [(name, b"ACGTACGT")])
        content = bytearray(path.read_bytes())
        content[124:136] = size.encode()
        content[148:156] = b"%06o\0 " % (sum(content[:148]) + 256 + sum(content[156:512]))
        path.write_bytes(content)
        with tarfile.open(path) as tar:
            (theirs,) = tar
        assert theirs.size == 8
        check(index({"train": [path]}, tmp_path / f"data{number}", AUTO), "train", [[ids(b"ACGTACGT")]])
        (ours,) = tar_files.members(path, tar_files.mapped_file(path))
        assert (ours.name, ours.offset_data) == (theirs.name, theirs.offset_data)


# --- which member ---


@pytest.mark.parametrize(
    ("suffixes", "asked", "chosen"),
    [
        (["txt", "json", "cls"], None, "txt"),
        (["json", "SEQ"], None, "SEQ"),
        (["seq.txt", "json"], None, "seq.txt"),
        (["6.txt", "json"], None, "6.txt"),
        (["seq.txt", "json"], "txt", "seq.txt"),
        (["txt", "label.txt"], "txt", "txt"),
        (["txt", "label.txt"], "label.txt", "label.txt"),
        (["seq.txt", "label.txt"], "seq.txt", "seq.txt"),
        (["txt", "seq"], "SEQ", "seq"),
        (["dna", "pth", "txt.gz"], None, "dna"),
    ],
)
def test_the_member_is_chosen_by_its_whole_suffix_or_else_by_the_last_part(
    tmp_path: Path, suffixes: list[str], asked: str | None, chosen: str
) -> None:
    members = [
        (f"{k}.{s}", b"ACGT"[: k + 1] if s == chosen else b"TTTTT") for k in range(3) for s in suffixes
    ]  # fmt: skip
    dataset = index({"train": [write_tar(tmp_path / "a.tar", members)]}, tmp_path / "data", IndexOptions(suffix=asked))
    check(dataset, "train", [[ids(b"A"), ids(b"AC"), ids(b"ACG")]])


def test_dots_in_keys_are_suffixes_that_differ_from_sample_to_sample(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("NM_1.6.txt", b"A"), ("NM_2.11.txt", b"C"), ("NM_3.txt", b"G")])
    check(index({"train": [path]}, tmp_path / "data", AUTO), "train", [[ids(b"A"), ids(b"C"), ids(b"G")]])


@pytest.mark.parametrize(
    ("members", "suffix", "sentence"),
    [
        (["a.txt", "b.json"], None, r"sample 'b' has no member 'txt' \(it has 'json'; a key ends at the first dot\).*--suffix"),
        (["a.txt", "b.seq.txt"], None, "sample 'b' has no member 'txt'"),
        (["a.1.txt", "b.1.txt", "b.2.txt"], None, "sample 'b' has 2 members 'txt' "),
        (["a.txt"], "seq.txt", r"sample 'a' has no member 'seq\.txt'"),
        (["a.txt", "a.seq"], None, r"several members that may be its sequence \('txt', 'seq'\): choose one with --suffix"),
        (["a.json", "a.cls"], None, r"no member that is its sequence \(it has 'json', 'cls'\); only txt, seq, sequence, dna"),
        (["a.txt.gz"], None, r"'txt\.gz' is compressed, so it cannot be read in place: decompress the members"),
        (["a.json", "a.pyd"], None, "'pyd' is a pickle, which dnascale never opens"),
        (["a.fa"], None, "'fa' is FASTA, which cannot be read in place: unpack it and use `dnascale prepare`"),
        (["a.txt", "a.TXT"], None, r"member 'a\.TXT' is there twice in one sample"),
        (["x", ".y.txt"], None, "has no samples"),
        ([], None, "has no samples"),
    ],
)  # fmt: skip
def test_samples_without_one_sequence_are_refused(
    tmp_path: Path, members: list[str], suffix: str | None, sentence: str
) -> None:
    path = write_tar(tmp_path / "a.tar", [(name, b"ACGT") for name in members])
    with pytest.raises(DataError, match=rf"{path}.*{sentence}"):
        index({"train": [path]}, tmp_path / "data", IndexOptions(suffix=suffix))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("suffix", ["txt.gz", "pyd", "pkl", "pickle", "pth", "fasta", "json", "", "seq.txt.bz2"])
def test_suffixes_that_hold_no_sequence_are_refused(suffix: str) -> None:
    with pytest.raises(UsageError, match=f"--suffix {suffix} (is|names)"):
        IndexOptions(suffix=suffix)


@pytest.mark.parametrize("alphabet", ["", "AA", "AC-", "AC GT", "ACGTX", "É", "I", "\0"])
def test_alphabets_that_are_not_letters_are_refused(alphabet: str) -> None:
    with pytest.raises(UsageError, match="must be the IUPAC letters"):
        IndexOptions(alphabet=alphabet)


def test_an_alphabet_for_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'txt' members are text"):
        index(one(tmp_path / "a.tar", b"A"), tmp_path / "data", IndexOptions(alphabet="ACGT"))


# --- what a sequence may not hold ---


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b">chr1\nACGT\n", r"'>' at byte 0 and 2 more places \(counted from 0\), so it is FASTA.*`dnascale prepare`"),
        (b"ACG\nTT\n", r"'\\n' at byte 3 \(counted from 0\), which is white space or a line end"),
        (b"ACGT\n\n", r"'\\n' at byte 4 "),
        (b"ACGT\r", r"'\\r' at byte 4 "),
        (b"AC GT\t", "' ' at byte 2 and 1 more places .*white space"),
        (b"ACGT7", r"'7' at byte 4 \(counted from 0\), which is no IUPAC letter"),
        (b"AC-GT", "'-' at byte 2 "),
        (b"ACGE", "'E' at byte 3 "),
        (b"I", "'I' at byte 0 "),
        (b"AC\xc3\xa9", r"'\\xc3' at byte 2 and 1 more places"),
        (b"\xef\xbb\xbfACGT", r"'\\xef' at byte 0"),
        (b"A" * 5000 + b"\0", r"'\\x00' at byte 5,000 "),
    ],
)
def test_text_that_is_not_one_sequence_is_refused_at_its_byte(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.tar"
    with pytest.raises(DataError, match=rf"^{path}: member 'b\.txt' has {sentence}"):
        index(one(path, content), tmp_path / "data", AUTO)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("alphabet", [None, "ACGT"])
@pytest.mark.parametrize("suffix", ["bin", "npy"])
def test_ids_that_are_no_bases_are_refused_at_their_token(tmp_path: Path, suffix: str, alphabet: str | None) -> None:
    for bad in range(256):
        path = tmp_path / f"{bad}.tar"
        content = [0, 3, bad, 1]
        tars = one(path, npy(content) if suffix == "npy" else bytes(content), suffix)
        if bad < 4 or (alphabet is None and (bad < CHARACTER.bases or bad == CHARACTER.unk)):
            index(tars, tmp_path / f"data{bad}", IndexOptions(alphabet=alphabet))
            continue
        why = "the last known id is"
        if alphabet is None and bad < len(CHARACTER):
            why = rf"which is \[{CHARACTER.tokens[bad][1:-1]}\] and no base"
        with pytest.raises(
            DataError, match=rf"member 'b\.{suffix}' has id {bad} at token 2 \(counted from 0\), (and )?{why}"
        ):
            index(tars, tmp_path / "data", IndexOptions(alphabet=alphabet))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            npy([1, 2, 3], "i8"),
            r"array of int64 of shape \(3,\), and reading in place needs one byte a token.*astype\(numpy\.uint8\)",
        ),
        (npy([1, 2], "<u2"), "array of uint16"),
        (npy([1], "?"), "array of bool"),
        (npy([b"A"], "S1"), "array of .S1"),
        (npy([[1, 2]]), r"array of uint8 of shape \(1, 2\)"),
        (npy(3), r"array of uint8 of shape \(\)"),
        (npy([None], "O", allow_pickle=True), "array of object"),
        (npy([1, 2, 3])[:-1], r"has 2 tokens, its header says 3"),
        (npy([1, 2, 3]) + b"\0", r"has 4 tokens, its header says 3"),
        (npy([1, 2, 3])[:100], "is no NumPy array"),
        (npy([1])[:9], "is no NumPy array"),
        (b"", "is no NumPy array"),
        (b"ACGT" * 99, "is no NumPy array"),
        (npy([1]).replace(b"descr", b"d\0scr"), "is no NumPy array"),
        (npy([1]).replace(b"{'descr'", b"((((((((("), "is no NumPy array"),
    ],
)
def test_arrays_that_are_not_one_byte_a_token_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "a.tar"
    with pytest.raises(DataError, match=rf"^{path}: member 'b\.npy' .*{sentence}"):
        index(one(path, content, "npy"), tmp_path / "data", AUTO)


def test_an_empty_array_is_an_empty_sample(tmp_path: Path) -> None:
    dataset = index(one(tmp_path / "a.tar", npy([]), "npy"), tmp_path / "data", AUTO)
    check(dataset, "train", [[[0] * 4] * 2])


def test_our_own_shards_are_refused_for_their_separators(human_cds: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"which is \[SEP\] and no base: store the bases of one sequence alone"):
        index({"train": [human_cds.folder / "train/shard-000000.tar"]}, tmp_path / "data", AUTO)


def test_a_member_of_four_gibibytes_is_refused_without_reading_it(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.txt")
    info.size = (1 << 32) + 512
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.USTAR_FORMAT))
    os.truncate(path, 512 + info.size + 1024)
    with pytest.raises(
        DataError, match=r"member 'a\.txt' has a sequence of 4,294,967,808 bytes, .*cut it in several samples"
    ):
        index({"train": [path]}, tmp_path / "data", AUTO)


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_sparse_files_are_refused_and_those_without_holes_are_read(tmp_path: Path, format: str) -> None:
    tar = shutil.which("tar")
    if not tar or b"GNU tar" not in subprocess.run([tar, "--version"], capture_output=True).stdout:
        pytest.skip("needs GNU tar")
    (tmp_path / "a.bin").write_bytes(bytes([1, 2] * 9000))
    (tmp_path / "b.bin").write_bytes(b"")
    os.truncate(tmp_path / "b.bin", 1 << 20)
    for names in (["a.bin"], ["a.bin", "b.bin"]):
        subprocess.run([tar, "cf", "x.tar", "--sparse", f"--format={format}", *names], cwd=tmp_path, check=True)
        if len(names) == 1:
            check(index({"train": [tmp_path / "x.tar"]}, tmp_path / "data", AUTO), "train", [[[1, 2] * 9000]])
        else:
            with pytest.raises(DataError, match=r"member 'b\.bin' is a sparse file"):
                index({"train": [tmp_path / "x.tar"]}, tmp_path / "none", AUTO)


# --- keys ---


@pytest.mark.parametrize(
    ("first", "second"),
    [(["a.txt", "b.txt", "a.txt"], []), (["a.txt", "b.txt"], ["c.txt", "b.txt"]), (["x/a.txt"], ["x/a.txt"])],
)
def test_a_key_that_comes_twice_is_refused_naming_both_tars(
    tmp_path: Path, first: list[str], second: list[str]
) -> None:
    one = write_tar(tmp_path / "1.tar", [(name, b"A") for name in first])
    other = write_tar(tmp_path / "2.tar", [(name, b"A") for name in second or ["z.txt"]])
    key = first[-1].removesuffix(".txt")
    for tars in ({"train": [one, other]}, {"train": [one], "valid": [other]}):
        with pytest.raises(DataError, match=rf"{other if second else one}: sample '{key}' was in {one} before"):
            index(tars, tmp_path / "data", AUTO)


def test_keys_of_one_hash_are_told_apart_and_many_tars_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_tar(tmp_path / f"{n}.tar", [(f"{n}-{k}.txt", b"AC") for k in range(n % 3 + 1)]) for n in range(12)]
    again = write_tar(tmp_path / "again.tar", [("4-0.txt", b"A")])
    for collide in (False, True):
        if collide:
            monkeypatch.setattr(foreign, "hash", lambda key: len(key), raising=False)
        index({"train": paths}, tmp_path / f"data{collide}", AUTO)
        with pytest.raises(DataError, match=rf"{again}: sample '4-0' was in {paths[4]} before"):
            index({"train": [*paths, again]}, tmp_path / "none", AUTO)


# --- damage ---


@pytest.fixture(params=FORMATS)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_tar(tmp_path / "a.tar", [("k" * 110 * (request.param > 0) + f"{n}.txt", b"ACGT" * 99) for n in range(3)], request.param)  # fmt: skip


def test_a_tar_that_was_cut_anywhere_is_refused_or_whole(small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()
    with tarfile.open(small) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    whole = index({"train": [small]}, tmp_path / "whole", AUTO)
    for size in sorted(
        {*range(0, end + 1200, 61), *range(512, end + 1025, 512), end - 1, end + 1, end + 511, end + 513}
    ):
        small.write_bytes(content[:size])
        if size < end + 512:
            with pytest.raises(
                DataError,
                match=rf"^{small} is (empty|no tar)|{small}.* byte [\d,]+.*(truncated|fetch or write it again)",
            ):
                index({"train": [small]}, tmp_path / "data", AUTO)
        else:
            dataset = index({"train": [small]}, tmp_path / f"data{size}", AUTO)
            assert (dataset.split("train").shards.blocks == whole.split("train").shards.blocks).all()


def test_any_damaged_header_is_refused_and_other_damage_raises_no_strange_error(small: Path, tmp_path: Path) -> None:
    content = small.read_bytes()
    with tarfile.open(small) as tar:
        headers = [member.offset_data - 512 for member in tar]
    rng = random.Random(0)
    whole = index({"train": [small]}, tmp_path / "whole", AUTO).split("train").shards.blocks
    for at in [header + n for header in headers for n in {*range(0, 512, 7), *range(148, 156)}]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << rng.randrange(8)
        small.write_bytes(damaged)
        try:
            dataset = index({"train": [small]}, tmp_path / f"data-{at}", AUTO)
        except DataError as error:
            sentence = str(error)
        else:  # the checksum is written otherwise, but says the same
            assert at % 512 in range(148, 156)
            assert (dataset.split("train").shards.blocks == whole).all()
            continue
        assert re.match(rf"{small}( is no tar|: .*header at byte)", sentence)
    for number in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        small.write_bytes(damaged)
        with suppress(DnascaleError):  # and nothing else
            index({"train": [small]}, tmp_path / f"data{number}", AUTO)


@pytest.mark.parametrize("size", [-1, -512, -1024, -(1 << 40)])
def test_a_negative_size_is_refused_and_does_not_go_round_for_ever(tmp_path: Path, size: int) -> None:
    for pax in (False, True):
        info = tarfile.TarInfo("b.txt")
        if pax:
            info.pax_headers = {"size": str(size)}
        else:
            info.size = size
        path = write_tar(tmp_path / f"{pax}.tar", [("a.txt", b"ACGT" * 200)])
        header = info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT)
        path.write_bytes(path.read_bytes()[:1536] + header + bytes(1024))
        with pytest.raises(DataError, match=r"no whole header at byte 1,536 \(a negative size\)"):
            index({"train": [path]}, tmp_path / "data", AUTO)


def test_two_tars_in_one_file_are_refused_at_the_byte_where_readers_stop(tmp_path: Path) -> None:
    a, b = (write_tar(tmp_path / f"{n}.tar", [(f"{n}.txt", b"ACGT")]) for n in "ab")
    start = a.stat().st_size
    a.write_bytes(a.read_bytes() + b.read_bytes())
    with pytest.raises(DataError, match=rf"{a} goes on at byte {start:,}, after the end of the tar at byte 1,024"):
        index({"train": [a]}, tmp_path / "data", AUTO)


@pytest.mark.parametrize(("mode", "name"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tars_are_refused(tmp_path: Path, mode: Any, name: str) -> None:
    with tarfile.open(tmp_path / "a.tar", mode) as tar:
        tar.addfile(tarfile.TarInfo("a.txt"))
    with pytest.raises(
        DataError, match=f"is compressed with {name}, which cannot be read in place: decompress it first"
    ):
        index({"train": [tmp_path / "a.tar"]}, tmp_path / "data", AUTO)


@pytest.mark.parametrize("content", [b"hello", b"<html>" * 200, b">chr1\nACGT\n" * 99])
def test_files_that_are_no_tars_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar is no tar"):
        index({"train": [tmp_path / "a.tar"]}, tmp_path / "data", AUTO)


def test_a_tar_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    tars = one(tmp_path / "a.tar", b"ACGT")
    with pytest.raises(DataError, match="changed while it was read"):
        index(tars, tmp_path / "data", AUTO, lambda _: os.utime(tmp_path / "a.tar", (0, 0)))


def test_damage_after_indexing_is_found_when_read_and_by_verify(tmp_path: Path) -> None:
    tars = one(tmp_path / "a.tar", b"ACGT" * 100)
    dataset = index(tars, tmp_path / "data", AUTO)
    content = bytearray(tars["train"][0].read_bytes())
    content[1536 + 7] = ord("C")
    tars["train"][0].write_bytes(content)
    assert len(verify(dataset)) == 1
    with pytest.raises(DataError, match=r"a\.tar: block 1 \(bytes 1,536 to 1,936\) does not match its checksum"):
        MappedShards(dataset, "train").stream(0)


# --- places ---


def test_pipes_urls_and_other_things_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for tar, sentence in [
        ("pipe:touch x", "is a command, and none is run"),
        ("https://me:secret@a.b/c.tar", "^https:// is a URL, and only files are indexed in place: download them first"),
        ("s3://bucket/{000..009}.tar", "is a URL"),
        (str(tmp_path / "fifo"), "is no regular file"),
    ]:
        for place in (tar, Path(tar)):
            with pytest.raises(UsageError, match=sentence):
                find_tars([place])
            with pytest.raises(UsageError, match=sentence):
                index({"train": [Path(place)]}, tmp_path / "data", AUTO)
    with pytest.raises(DataError, match="does not exist"):
        find_tars([tmp_path / "nothing.tar"])
    with pytest.raises(DataError, match="is a directory"):
        find_tars([tmp_path])


def test_one_tar_named_twice_is_refused_also_in_two_splits(tmp_path: Path) -> None:
    (path,) = one(tmp_path / "a.tar", b"A")["train"]
    (tmp_path / "b.tar").symlink_to(path)
    for tars in ({"train": [path, path]}, {"train": [path], "valid": [tmp_path / "b.tar"]}):
        with pytest.raises(DataError, match="are one file"):
            index(tars, tmp_path / "data", AUTO)


def test_train_must_have_tars_and_splits_must_be_known(tmp_path: Path) -> None:
    tars = one(tmp_path / "a.tar", b"A")["train"]
    for split, paths, sentence in [
        ("valid", tars, "no tar to"),
        ("train", [], "no tar to"),
        ("dev", tars, "'dev' is no"),
    ]:
        with pytest.raises(UsageError, match=sentence):
            index({split: paths}, tmp_path / "data", AUTO)


def test_tars_below_the_folder_are_named_relative_to_it_and_move_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    a = write_tar(home / "train" / "a%06d [1].tar", [("a.txt", b"ACGT" * 9)])
    b = write_tar(home / "b.tar", [("b.txt", b"GG")])
    outside = write_tar(tmp_path / "c.tar", [("c.txt", b"TTT")])
    monkeypatch.chdir(home)
    dataset = index({"train": [Path("train") / a.name, b], "test": [outside]}, Path("."), AUTO)
    assert dataset.name == "home"
    assert dataset.split("train").shards.names == ("train/a%06d [1].tar", "b.tar")
    assert dataset.split("test").shards.names == (str(outside),)
    monkeypatch.chdir("/")
    home.rename(tmp_path / "moved")
    moved = load_dataset(tmp_path / "moved")
    check(moved, "train", [[ids(b"ACGT" * 9)], [ids(b"GG")]])
    check(moved, "test", [[ids(b"TTT")]])
    names = {path.relative_to(tmp_path / "moved").as_posix() for path in (tmp_path / "moved").rglob("*")}
    files = {"shards.npy", "blocks.npy"}
    assert names == {
        "dataset.json", "b.tar", "train", "test", f"train/{a.name}", *(f"{s}/{f}" for s in ("train", "test") for f in files)
    }  # fmt: skip


def test_a_folder_reached_through_a_link_holds_its_tars(tmp_path: Path) -> None:
    a = write_tar(tmp_path / "real" / "a.tar", [("a.txt", b"ACGT")])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    elsewhere = write_tar(tmp_path / "b.tar", [("b.txt", b"ACGT")])
    (tmp_path / "real" / "b.tar").symlink_to(elsewhere)
    dataset = index({"train": [a, tmp_path / "link" / "b.tar"]}, tmp_path / "link", AUTO)
    assert dataset.split("train").shards.names == ("a.tar", "b.tar")
    check(dataset, "train", [[ids(b"ACGT")]] * 2)


def test_an_indexed_folder_is_not_indexed_again_over_what_is_there(tmp_path: Path) -> None:
    tars = one(tmp_path / "a.tar", b"A")
    index(tars, tmp_path, AUTO)
    with pytest.raises(
        UsageError, match=r"is a data set already: remove dataset\.json, train/shards\.npy, train/blocks\.npy"
    ):
        index(tars, tmp_path, AUTO)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / "train" / "shards.npy").unlink()
    with pytest.raises(UsageError, match=r"remove train/blocks\.npy there"):
        index(tars, tmp_path, AUTO)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        index(tars, tmp_path / "other", AUTO)


def test_nothing_is_left_when_the_index_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars = one(tmp_path / "a.tar", b"A")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(foreign, "write_whole", full)
    with pytest.raises(SpaceError, match="no space left to write"):
        index(tars, tmp_path, AUTO)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_the_same_tars_give_the_same_files_and_the_order_of_tars_matters(tmp_path: Path) -> None:
    a, b = (write_tar(tmp_path / f"{n}.tar", [(f"{n}.txt", n.encode() * 9)]) for n in "AC")
    first, second = (index({"train": [a, b]}, tmp_path / name / "data", AUTO) for name in "xy")
    for file in ("dataset.json", "train/shards.npy", "train/blocks.npy"):
        assert (first.folder / file).read_bytes() == (second.folder / file).read_bytes()
    assert index({"train": [b, a]}, tmp_path / "z", AUTO).fingerprint != first.fingerprint
    assert json.loads((first.folder / "dataset.json").read_text())["layout"] == "records"
