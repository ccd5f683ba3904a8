"""Plain WebDataset tars that others made, as a data set, without copying a token. Used by `dnascale data index`.

A sample is one sequence, which one of its members holds: as text, or as ids of one byte each. What is written is an
index of layout `records`: where each sequence lies in its tar. Members are looked at as bytes: nothing is unpacked,
decoded or run, whatever its suffix says.
"""

import hashlib
import io
import mmap
import re
import tarfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from dnascale import __version__
from dnascale.data.prepare.options import SPLITS
from dnascale.data.shards import BLOCK_ROW, Dataset, Index, Shard, Split, load_dataset
from dnascale.data.sources import resolve_all
from dnascale.data.tars import Sample, in_one_piece, mapped_file, samples, shown, where_is
from dnascale.errors import DataError, UsageError
from dnascale.files import changed_meanwhile, explained, sync, whole_folder, write_whole
from dnascale.vocab import CHARACTER

#: Suffixes of members that hold one sequence and nothing else: as letters, or as token ids.
TEXT = ("txt", "seq", "sequence", "dna")
TOKENS = ("bin", "tokens", "npy")

_READABLE = f"only {', '.join(TEXT)} (letters) and {', '.join(TOKENS)} (token ids of one byte each) are read in place"
#: Suffixes that people may hope for, and what makes them unfit.
_UNFIT = {
    kind: what
    for kinds, what in (
        ("gz bgz bz2 xz zst lz4 zip", "is compressed, so it cannot be read in place: decompress the members"),
        ("pyd pkl pickle pth pt", "is a pickle, which dnascale never opens, for it may run any program: store text"),
        ("fa fasta fna ffn fas", "is FASTA, which cannot be read in place: unpack it and use `dnascale prepare`"),
    )
    for kind in kinds.split()
}
#: The letters that text may hold, as bytes. The vocabulary's '-' is a gap, and none of them.
_LETTERS = bytes(b for b in range(128) if chr(b).isalpha() and CHARACTER.byte_table[b] != CHARACTER.unk)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # also after Path has made one slash of two

_CHUNK = 1 << 20  # bytes that are counted and hashed in one go
_LONGEST = (1 << 32) - 1
_NPY_HEADER = 1 << 14  # bytes; NumPy itself takes no longer one


@dataclass(frozen=True)
class IndexOptions:
    """What `index` takes for the sequence. Raises UsageError for what cannot be one."""

    suffix: str | None = None  # of the member that holds the sequence, e.g. txt, seq, bin, npy; None: found out
    alphabet: str | None = None  # of token arrays: the letters of ids 0, 1, 2, ...; None: ids of the vocabulary

    def __post_init__(self) -> None:
        if self.suffix is not None and _kind(self.suffix) not in TEXT + TOKENS:
            why = _UNFIT.get(_kind(self.suffix), f"names no sequence: {_READABLE}")
            raise UsageError(f"--suffix {self.suffix} {why}.")
        if self.alphabet is not None:
            letters = self.alphabet.encode("ascii", "replace")
            if not letters or letters.translate(None, _LETTERS) or len(set(letters)) < len(letters):
                raise UsageError(
                    f"--alphabet '{self.alphabet}' must be the IUPAC letters of ids 0, 1, 2, ..., each once, such as "
                    "ACGTN."
                )


def find_tars(tars: Iterable[str | Path]) -> list[Path]:
    """The files that paths and globs name.

    Raises UsageError for what is no file of this machine, DataError when nothing is there or one file is named twice.
    """
    given = [str(tar) for tar in tars]
    for tar in given:
        if tar.startswith("pipe:"):
            raise UsageError(
                "a tar that begins with pipe: is a command, and none is run: save what it prints, and name the file."
            )
        if _URL.match(tar):
            scheme = tar.partition(":")[0]  # what follows may hold credentials
            raise UsageError(f"{scheme}:// is a URL, and only files are indexed in place: download them first.")
    paths = resolve_all(given)
    for path in paths:
        if not path.is_file():
            raise UsageError(
                f"{path} is no regular file, and training reads a tar many times: save it as a file first."
            )
    return paths


def index(
    tars: dict[str, list[Path]],
    out: Path,
    options: IndexOptions,
    progress: Callable[[int], None] = lambda _bytes: None,
) -> Dataset:
    """Makes the data set folder `out` of tars by split (train, valid, test), which stay where they are.

    `out` is a new folder; or one that tars lie in: then the index goes beside them, and all may be moved together.
    `progress` is told of bytes read. Raises DataError for tars that cannot be read in place, UsageError for options and
    places, SpaceError when the disk is full; in each case nothing new is left at `out`.
    """
    if unknown := set(tars) - set(SPLITS):
        raise UsageError(f"'{min(unknown)}' is no split of a data set: use {', '.join(SPLITS)}.")
    everything = find_tars(chain.from_iterable(tars.values()))  # one tar in two splits is an error
    files = {split: find_tars(tars[split]) for split in SPLITS if tars.get(split)}
    if "train" not in files:
        raise UsageError("there is no tar to train on: name at least one.")
    if any(_inside(path, out) for path in everything):
        names = ["dataset.json", *(f"{split}/{rows}.npy" for split in files for rows in ("shards", "blocks"))]
        if there := [name for name in names if (out / name).exists()]:
            raise UsageError(f"{out} is a data set already: remove {', '.join(there)} there to index its tars again.")
        _save_beside(_index(files, out, options, progress), out)
    else:
        with whole_folder(out) as work:
            _index(files, out, options, progress).save(work)
    return load_dataset(out)


def _index(files: dict[str, list[Path]], out: Path, options: IndexOptions, progress: Callable[[int], None]) -> Dataset:
    reading = _Reading.choose(files["train"][0], options)
    keys = _Keys()
    tars: dict[str, list[_Tar]] = {split: [] for split in files}
    for split, path in ((split, path) for split, paths in files.items() for path in paths):
        tar, hashes = _read_tar(path, reading, progress)
        keys.add(path, hashes)
        tars[split].append(tar)
    every = list(chain.from_iterable(tars.values()))
    splits = {split: _split(split, of_split, out, reading) for split, of_split in tars.items()}
    records, bases = (sum(getattr(split, key) for split in splits.values()) for key in ("records", "bases"))
    empty = sum(tar.empty for tar in every)
    return Dataset(
        folder=out,
        name=out.resolve().name,
        created_by=f"dnascale {__version__}",
        vocabulary=CHARACTER,
        soft_mask_bit=False,
        sources=[tar.description() for tar in every],
        options={"suffix": reading.suffix, "alphabet": options.alphabet},
        cleaning={"records_in": records + empty, "bases_in": bases, "records_out": records, "bases_out": bases,
                  "dropped": {"empty sequence": {"records": empty, "bases": 0}} if empty else {}},
        groups={},
        splits=splits,
        layout="records",
        translate=reading.translate,
    )  # fmt: skip


def _split(name: str, tars: "list[_Tar]", out: Path, reading: "_Reading") -> Split:
    shards = Index.of([tar.shard(out) for tar in tars])
    lengths = shards.blocks["tokens"]
    if not len(lengths):
        raise DataError(
            f"the {name} split has no sequence: every sample of {tars[0].path} and its other tars is empty."
        )
    counts = sum((tar.counts for tar in tars), np.zeros(256, dtype=np.int64))
    by_id = np.zeros(256, dtype=np.int64)
    np.add.at(by_id, reading.ids, counts)
    return Split(
        records=len(lengths),
        bases=int(counts.sum()),
        tokens=int(shards.tokens.sum()),
        longest_record=int(lengths.max()),
        soft_masked=int(counts[reading.soft].sum()),
        composition={CHARACTER.tokens[i]: int(by_id[i]) for i in np.flatnonzero(by_id)},
        shards=shards,
    )


def _save_beside(dataset: Dataset, out: Path) -> None:
    """Writes the index into a folder that holds other things: new files only, all or none, dataset.json last."""
    written: list[Path] = []
    try:
        for split, of_split in dataset.splits.items():
            (out / split).mkdir(exist_ok=True)
            for name, content in of_split.shards.files(split).items():
                with (out / name).open("xb") as file:
                    written.append(out / name)
                    file.write(content)
                sync(out / name)
            sync(out / split)
        write_whole(out / "dataset.json", dataset.to_json().encode())
        sync(out)
    except BaseException as error:
        for path in written:
            path.unlink()
        for split in dataset.splits:
            with suppress(OSError):  # other things are in it
                (out / split).rmdir()
        if isinstance(error, OSError):
            raise explained(error, out) from error
        raise


@dataclass(frozen=True, eq=False)
class _Reading:
    """Which member of a sample is its sequence, and what the bytes in it stand for."""

    suffix: str
    whole: bool  # it is the whole suffix of these members; else the last part of it
    alphabet: str | None
    good: np.ndarray  # bool [256]: bytes that a sequence may hold
    ids: np.ndarray  # uint8 [256]: what they are in the vocabulary
    soft: np.ndarray  # bool [256]: those that are lower case

    @classmethod
    def choose(cls, path: Path, options: IndexOptions) -> "_Reading":
        """What the options say, and what they leave open as the first sample of a tar has it."""
        key, sample = next(samples(path, mapped_file(path), Counter()))
        suffix = options.suffix.lower().lstrip(".") if options.suffix else _found_out(path, key, sample)
        text = _kind(suffix) in TEXT
        if text and options.alphabet:
            raise UsageError(f"--alphabet is for token ids, and '{suffix}' members are text: leave it out.")
        if text or options.alphabet:
            letters = options.alphabet.encode().ljust(256, b"\0") if options.alphabet else bytes(range(256))
            good = np.isin(np.frombuffer(letters, dtype=np.uint8), np.frombuffer(_LETTERS, dtype=np.uint8))
            ids, soft = CHARACTER.encode_bases(letters), CHARACTER.soft_mask(letters) > 0
        else:
            ids = np.arange(256, dtype=np.uint8)
            good, soft = (ids < CHARACTER.bases) | (ids == CHARACTER.unk), np.zeros(256, dtype=bool)
        return cls(suffix, suffix in sample, options.alphabet, good, ids, soft)

    @property
    def translate(self) -> bytes | None:
        """The table of bytes to ids, unless they are the same."""
        return None if np.array_equal(self.ids[self.good], np.flatnonzero(self.good)) else self.ids.tobytes()

    def member(self, path: Path, key: str, sample: Sample) -> tarfile.TarInfo:
        """The one member that holds the sequence. Raises DataError."""
        fitting = [suffix for suffix in sample if (suffix if self.whole else _kind(suffix)) == self.suffix]
        if len(fitting) == 1:
            return sample[fitting[0]]
        count = f"{len(fitting)} members" if fitting else "no member"
        raise DataError(
            f"{path}: sample {shown(key)} has {count} '{self.suffix}' (it has {_listed(sample)}; a key ends at the first "
            "dot), and every sample must be one sequence: choose another --suffix, or write the tar again."
        )

    def span(self, path: Path, member: tarfile.TarInfo, mapped: mmap.mmap) -> tuple[int, int]:
        """Where in the tar the sequence begins and ends. Raises DataError when it is not there as it is."""
        begin, end = member.offset_data, member.offset_data + member.size
        if not in_one_piece(member):
            raise DataError(
                f"{where_is(path, member)} is a sparse file, whose zeros are not in the tar: write it again without "
                "--sparse."
            )
        if _kind(self.suffix) in TEXT:
            last = mapped[max(begin, end - 2) : end]
            end -= 2 if last == b"\r\n" else int(last.endswith(b"\n"))
        elif _kind(self.suffix) == "npy":
            begin = _array_begins(where_is(path, member), mapped, begin, end)
        if end - begin > _LONGEST:
            raise DataError(
                f"{where_is(path, member)} has a sequence of {end - begin:,} bytes, an index takes {_LONGEST:,}: cut it in "
                "several samples."
            )
        return begin, end

    def unfit(self, sequence: np.ndarray) -> str:
        """What is wrong with a sequence, uint8 [n], in which not all is good."""
        bad = np.flatnonzero(~self.good[sequence])
        at, byte = int(bad[0]), int(sequence[bad[0]])
        others = f" and {len(bad) - 1:,} more places" * (len(bad) > 1)
        if _kind(self.suffix) in TOKENS:
            if self.alphabet is None and byte < len(CHARACTER):
                why = f"which is {CHARACTER.tokens[byte]} and no base: store the bases of one sequence alone"
            else:
                last = np.flatnonzero(self.good)[-1]
                why = f"and the last known id is {last}: give the letters of all ids with --alphabet"
            return f"id {byte} at token {at:,}{others} (counted from 0), {why}"
        if byte == ord(">"):
            why = "so it is FASTA, which cannot be read in place: unpack it and use `dnascale prepare`"
        elif byte in b" \t\r\n\v\f":
            why = "which is white space or a line end within the sequence: store it in one piece"
        else:
            why = "which is no IUPAC letter of DNA or RNA: store the sequence alone"
        return f"{chr(byte)!a} at byte {at:,}{others} (counted from 0), {why}"


@dataclass(frozen=True, eq=False)
class _Tar:
    """What was found in one tar."""

    path: Path
    bytes: int
    sha256: str
    blocks: np.ndarray  # BLOCK_ROW [sequences]
    counts: np.ndarray  # int64 [256], of each byte in the sequences
    empty: int  # samples without a base
    warnings: list[str]

    def shard(self, out: Path) -> Shard:
        """As it is listed in the data set folder `out`."""
        records, name = len(self.blocks), _inside(self.path, out) or str(self.path.absolute())
        return Shard(name, self.bytes, self.sha256, int(self.counts.sum()) + records, records, self.blocks)

    def description(self) -> dict[str, Any]:
        """As it is listed among the sources."""
        return {
            "name": self.path.name, "bytes": self.bytes, "sha256": self.sha256,
            "records": len(self.blocks) + self.empty, "bases": int(self.counts.sum()),
            "compression": "", "warnings": self.warnings,
        }  # fmt: skip


def _read_tar(path: Path, reading: _Reading, progress: Callable[[int], None]) -> tuple[_Tar, np.ndarray]:
    """All that is to be known of a tar, and the hashes of its samples' keys, int64 [samples]. Raises DataError."""
    before = path.stat()
    mapped = mapped_file(path)
    content = _Content(path, memoryview(mapped), reading, progress)
    noted: Counter[str] = Counter()
    hashes, rows = array("q"), array("Q")  # a row: offset, tokens, crc32
    for key, sample in samples(path, mapped, noted):
        member = reading.member(path, key, sample)
        begin, end = reading.span(path, member, mapped)
        hashes.append(hash(key))
        if begin < end:
            rows.extend((begin, end - begin, content.take(member.name, begin, end)))
    content.check(len(mapped))
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise changed_meanwhile(path, "index it")
    table = np.array(rows, dtype=np.uint64).reshape(-1, 3)
    blocks = np.zeros(len(table), dtype=BLOCK_ROW)
    for column, name in enumerate(("offset", "tokens", "crc32")):
        blocks[name] = table[:, column]
    if empty := len(hashes) - len(blocks):
        noted["samples were left out, for they are empty"] = empty
    warnings = [f"{path}: {count:,} {what}" for what, count in noted.items()]
    tar = _Tar(path, len(mapped), content.sha256.hexdigest(), blocks, content.counts, empty, warnings)
    return tar, np.array(hashes, dtype=np.int64)


class _Content:
    """The bytes of a tar: its sequences are counted and checked, all of it is hashed, many members at a time."""

    def __init__(self, path: Path, view: memoryview, reading: _Reading, progress: Callable[[int], None]) -> None:
        self.counts = np.zeros(256, dtype=np.int64)  # of each byte in the sequences
        self.sha256 = hashlib.sha256()
        self._path, self._view, self._reading, self._progress = path, view, reading, progress
        self._waiting: list[tuple[str, int, int]] = []  # member, and where its sequence begins and ends
        self._waiting_bytes = 0
        self._done = 0  # bytes of the tar

    def take(self, name: str, begin: int, end: int) -> int:
        """The checksum of a sequence, which may be checked later. Raises DataError for this one or one before it."""
        self._waiting.append((name, begin, end))
        self._waiting_bytes += end - begin
        if self._waiting_bytes >= _CHUNK:
            self.check(end)
        checksum: int = isal_zlib.crc32(self._view[begin:end])
        return checksum

    def check(self, upto: int) -> None:
        """Checks what waits, and hashes the tar up to a byte. Raises DataError."""
        pieces = [
            self._view[at : min(at + _CHUNK, end)]
            for _, begin, end in self._waiting
            for at in range(begin, end, _CHUNK)
        ]
        if self._waiting_bytes < 2 * _CHUNK:
            pieces = [memoryview(b"".join(pieces))]
        for piece in pieces:
            self.counts += np.bincount(np.frombuffer(piece, dtype=np.uint8), minlength=256)
        if self.counts[~self._reading.good].any():
            for name, begin, end in self._waiting:
                sequence = np.frombuffer(self._view[begin:end], dtype=np.uint8)
                if not self._reading.good[sequence].all():
                    raise DataError(f"{self._path}: member {shown(name)} has {self._reading.unfit(sequence)}.")
        for at in range(self._done, upto, _CHUNK):
            self.sha256.update(self._view[at : min(at + _CHUNK, upto)])
            self._progress(min(_CHUNK, upto - at))
        self._waiting, self._waiting_bytes, self._done = [], 0, upto


class _Keys:
    """The keys of all samples, as 64-bit hashes: eight bytes a sample, in sorted runs that are merged as they grow."""

    def __init__(self) -> None:
        self._paths: list[Path] = []
        self._runs: list[np.ndarray] = []  # int64

    def add(self, path: Path, hashes: np.ndarray) -> None:
        """Of the samples of a tar, int64 [n]. Raises DataError when there was one of the same key."""
        new = np.sort(hashes)
        again = [new[1:][new[1:] == new[:-1]]]
        for run in self._runs:
            place = np.minimum(np.searchsorted(run, new), len(run) - 1)
            again.append(new[run[place] == new])
        self._paths.append(path)
        if suspects := set(np.concatenate(again).tolist()):
            self._look_at(suspects)
        while self._runs and len(self._runs[-1]) <= len(new):
            new = np.sort(np.concatenate([self._runs.pop(), new]), kind="stable")
        self._runs.append(new)

    def _look_at(self, suspects: set[int]) -> None:
        """Reads the keys themselves, for two may have one hash."""
        seen: dict[str, Path] = {}
        for path in self._paths:
            for key, _ in samples(path, mapped_file(path), Counter()):
                if key in seen:
                    raise DataError(
                        f"{path}: sample {shown(key)} was in {seen[key]} before, so a sequence would count twice, or "
                        "be trained on and held out: leave one of them out, or give every sample a key of its own."
                    )
                if hash(key) in suspects:
                    seen[key] = path


def _array_begins(where: str, mapped: mmap.mmap, begin: int, end: int) -> int:
    """Where the tokens in a member of NumPy's format begin. Raises DataError unless they are a row of single bytes."""
    width = 4 if mapped[begin + 6 : begin + 7] == b"\2" else 2  # of the header's length, by version
    first = begin + 8 + width + int.from_bytes(mapped[begin + 8 : begin + 8 + width], "little")
    try:
        shape, dtype = _npy_header(mapped[begin : min(first, end, begin + _NPY_HEADER)])
    except Exception as error:  # of a parser that is given anything
        raise DataError(f"{where} is no NumPy array ({error}): write the tar again.") from None
    if len(shape) != 1 or dtype not in (np.uint8, np.int8):
        raise DataError(
            f"{where} is an array of {dtype} of shape {shape}, and reading in place needs one byte a token in one row: "
            "write the tar again with array.astype(numpy.uint8).ravel()."
        )
    if end - first != shape[0]:
        raise DataError(
            f"{where} has {end - first:,} tokens, its header says {shape[0]:,}: it is damaged, write the tar again."
        )
    return first


@lru_cache(maxsize=1 << 16)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype. Raises ValueError."""
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _found_out(path: Path, key: str, sample: Sample) -> str:
    """The suffix, or the last part of it, of the one member that can be a sequence. Raises DataError."""
    fitting = [suffix for suffix in sample if _kind(suffix) in TEXT + TOKENS]
    if len(fitting) == 1:
        return _kind(fitting[0])
    if fitting:
        raise DataError(
            f"{path}: sample {shown(key)} has several members that may be its sequence ({_listed(fitting)}): choose one "
            "with --suffix."
        )
    why = [f"{shown(suffix)} {_UNFIT[_kind(suffix)]}" for suffix in sample if _kind(suffix) in _UNFIT]
    raise DataError(
        f"{path}: sample {shown(key)} has no member that is its sequence (it has {_listed(sample)}); "
        f"{why[0] if why else _READABLE}."
    )


def _kind(suffix: str) -> str:
    """The last part of a suffix, which tells what a member holds."""
    return suffix.lower().rpartition(".")[2]


def _inside(path: Path, out: Path) -> str:
    """The name of a file relative to the folder `out`, if it lies in it; a link lies where it stands."""
    place, home = path.parent.resolve() / path.name, out.resolve()
    return place.relative_to(home).as_posix() if place.is_relative_to(home) else ""


def _listed(suffixes: Iterable[str]) -> str:
    return ", ".join(map(shown, suffixes))
