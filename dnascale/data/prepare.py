"""Sequences to shards: read strictly, clean, split by group, shuffle, write. Used by `dnascale prepare`.

Two passes: records go to a spool file a split (one byte a base), then from there into shards in a keyed random
order, so that memory grows with the number of records and not with their length. The folder appears under
its final name only when it is whole, and the same input gives the same bytes.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dnascale import __version__
from dnascale.data.shards import Dataset, Index, Shard, Split, load_dataset
from dnascale.data.sources import ReadReport, Record, group_of, read_fasta, resolve_all
from dnascale.data.writer import ShardWriter
from dnascale.errors import DataError, UsageError
from dnascale.files import whole_folder
from dnascale.vocab import CHARACTER, SOFT_MASK_BIT, Vocabulary

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class PrepareOptions:
    """What `prepare` does to the records. Recorded in dataset.json."""

    valid: float = 0.1
    test: float = 0.0
    group: str | None = None
    min_length: int = 1
    soft_mask: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.valid < 0 or self.test < 0 or self.valid + self.test >= 1:
            raise UsageError(f"--valid {self.valid} and --test {self.test} must be shares that leave some for train.")
        if self.min_length < 1:
            raise UsageError(f"--min-length {self.min_length} must be at least 1.")
        if self.group is not None:
            try:
                if re.compile(self.group).groups < 1:
                    raise UsageError(f"--group '{self.group}' needs a group in parentheses, e.g. 'gene=(\\w+)'.")
            except re.error as error:
                raise UsageError(f"--group '{self.group}' is not a regular expression: {error}.") from None


@dataclass(slots=True)
class _Kept:
    """One record that goes into a split: where it stands in the spool file, and what to say of it."""

    order: bytes
    name: str
    group: str
    source: int
    start: int
    length: int


@dataclass
class _Tally:
    """What was read, what was left out and why, and by which rules the rest was grouped."""

    records: int = 0
    bases: int = 0
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    rules: Counter[str] = field(default_factory=Counter)


@dataclass
class _Spool:
    """The kept records of one split, their bases in one temporary file."""

    path: Path
    file: BinaryIO
    records: list[_Kept] = field(default_factory=list)
    bases: int = 0


def prepare(
    sources: list[str],
    out: Path,
    options: PrepareOptions,
    vocabulary: Vocabulary = CHARACTER,
    progress: Callable[[str, int], None] = lambda _what, _bases: None,
) -> Dataset:
    """Reads FASTA `sources` and writes the data set folder `out`.

    `progress(what, bases)` is called as bases are read or written. Raises DataError (input), UsageError (options,
    `out` not empty) and SpaceError (disk full); in each case nothing is left at `out`.
    """
    paths = resolve_all(sources)
    with whole_folder(out) as work:
        _prepare(paths, work, out, options, vocabulary, progress).save(work)
    return load_dataset(out)


def _prepare(
    paths: list[Path],
    work: Path,
    out: Path,
    options: PrepareOptions,
    vocabulary: Vocabulary,
    progress: Callable[[str, int], None],
) -> Dataset:
    fractions = {"train": 1.0, "valid": options.valid, "test": options.test}
    tally = _Tally()
    with ExitStack() as files:
        spools = {
            name: _Spool(work / f"{name}.spool", files.enter_context((work / f"{name}.spool").open("xb")))
            for name in SPLITS
            if fractions[name] > 0
        }
        described = [
            _read_source(path, index, spools, tally, options, vocabulary, progress) for index, path in enumerate(paths)
        ]
    splits: dict[str, Split] = {}
    for name, spool in spools.items():
        if not spool.records:
            raise DataError(_empty_split(name, tally, options))
        splits[name] = _write_split(name, spool, work, vocabulary, options, progress)
        spool.path.unlink()
    kept = {key: sum(getattr(split, key) for split in splits.values()) for key in ("records", "bases")}
    return Dataset(
        folder=out,
        name=out.name,
        created_by=f"dnascale {__version__}",
        vocabulary=vocabulary,
        soft_mask_bit=options.soft_mask,
        sources=described,
        options={k: getattr(options, k) for k in options.__dataclass_fields__},
        cleaning={"records_in": tally.records, "bases_in": tally.bases, "records_out": kept["records"],
                  "bases_out": kept["bases"], "dropped": {k: dict(v) for k, v in sorted(tally.dropped.items())}},
        groups=dict(sorted(tally.rules.items())),
        splits=splits,
    )  # fmt: skip


def _read_source(
    path: Path,
    source: int,
    spools: dict[str, _Spool],
    tally: _Tally,
    options: PrepareOptions,
    vocabulary: Vocabulary,
    progress: Callable[[str, int], None],
) -> dict[str, Any]:
    """Deals the records of one file into the spools, and describes the file."""
    pattern = re.compile(options.group) if options.group else None
    report = ReadReport(str(path))
    before = _state_of(path)
    for record in read_fasta(path, report):
        tally.records += 1
        tally.bases += len(record.bases)
        if reason := _unfit(record, options):
            tally.dropped.setdefault(reason, Counter()).update(records=1, bases=len(record.bases))
            continue
        group, rule = group_of(record, pattern)
        tally.rules[rule] += 1
        _keep(record, group, source, spools[split_of(group, options)], options, vocabulary)
        progress("reading", len(record.bases))
    digest = _file_digest(path)
    if before != _state_of(path):
        raise DataError(f"{path} changed while it was read: prepare again when nothing writes to it.")
    return {
        "name": path.name, "bytes": before[0], "sha256": digest, "records": report.records, "bases": report.bases,
        "compression": report.compression, "warnings": report.warnings,
    }  # fmt: skip


def split_of(group: str, options: PrepareOptions) -> str:
    """The split of a group: a hash of its name alone, so that adding data never moves a group."""
    place = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8, person=b"dnascale-split").digest()) / 2**64
    if place < options.valid:
        return "valid"
    return "test" if place < options.valid + options.test else "train"


def _unfit(record: Record, options: PrepareOptions) -> str | None:
    if not record.bases:
        return "empty sequence"
    if len(record.bases) < options.min_length:
        return f"shorter than {options.min_length} bases"
    return None


def _keep(
    record: Record, group: str, source: int, spool: _Spool, options: PrepareOptions, vocabulary: Vocabulary
) -> None:
    bases = record.bases[:]
    tokens = vocabulary.encode_bases(bases) | vocabulary.soft_mask(bases)
    order = hashlib.blake2b(f"{options.seed}\0{source}\0{record.name}".encode(), digest_size=8).digest()
    spool.records.append(_Kept(order, record.name, group, source, spool.bases, len(tokens)))
    spool.file.write(tokens.tobytes())
    spool.bases += len(tokens)


def _write_split(
    name: str,
    spool: _Spool,
    work: Path,
    vocabulary: Vocabulary,
    options: PrepareOptions,
    progress: Callable[[str, int], None],
) -> Split:
    bases = np.memmap(spool.path, dtype=np.uint8, mode="r")
    separator = np.array([vocabulary.sep], dtype=vocabulary.dtype)
    sidecar = _Sidecar(work / name)
    counts = np.zeros(256, dtype=np.int64)
    with ShardWriter(work, name, dtype=vocabulary.dtype) as writer:
        for record in sorted(spool.records, key=lambda r: (r.order, r.start)):
            codes = np.asarray(bases[record.start : record.start + record.length])
            counts += np.bincount(codes, minlength=256)
            tokens = vocabulary.encode_codes(codes if options.soft_mask else codes & ~np.uint8(SOFT_MASK_BIT))
            upto = np.append(0, np.cumsum(vocabulary.bases_per_token[tokens & (vocabulary.soft_mask_bit - 1)]))
            done = 0
            while done < len(tokens):
                piece = tokens[done : done + writer.room]
                first, last = int(upto[done]), int(upto[done + len(piece)])
                sidecar.add(record, first, *writer.position, len(piece), codes[first:last])
                writer.write(piece)
                done += len(piece)
            writer.write(separator)
            progress("writing", len(codes))
        shards = Index.of(sidecar.finish(writer.close()), writer.names)
    plain = counts[:SOFT_MASK_BIT] + counts[SOFT_MASK_BIT:]
    return Split(
        records=len(spool.records),
        bases=int(plain.sum()),
        tokens=int(shards.tokens.sum()),
        longest_record=max(r.length for r in spool.records),
        soft_masked=int(counts[SOFT_MASK_BIT:].sum()),
        composition={vocabulary.tokens[i]: int(plain[i]) for i in np.flatnonzero(plain[: len(vocabulary)])},
        shards=shards,
    )


@dataclass
class _Sidecar:
    """Which record each stretch of a shard came from: shard-NNNNNN.records.parquet, never needed to train."""

    folder: Path
    rows: list[tuple[Any, ...]] = field(default_factory=list)  # of the shard that is being written
    counts: list[int] = field(default_factory=list)  # rows of the shards before it

    def add(self, record: _Kept, record_start: int, shard: int, token: int, tokens: int, codes: np.ndarray) -> None:
        while len(self.counts) < shard:
            self._write()
        outside = np.zeros(1, dtype=np.uint8)
        edges = np.flatnonzero(np.diff(codes >> 7, prepend=outside, append=outside))
        self.rows.append((record.name, record.group, record.source, record_start, token, tokens, edges))

    def finish(self, shards: list[Shard]) -> list[Shard]:
        """The shards with their numbers of records. A last separator may be alone in its shard."""
        while len(self.counts) < len(shards):
            self._write()
        return [replace(shard, records=count) for shard, count in zip(shards, self.counts, strict=True)]

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = pa.schema(
            [("record", pa.string()), ("group", pa.string()), ("source", pa.int32()), ("record_start", pa.int64()),
             ("shard_start", pa.int64()), ("length", pa.int64()), ("soft_mask_edges", pa.list_(pa.int64()))]
        )  # fmt: skip
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(schema)
        table = pa.table([pa.array(c, t) for c, t in zip(columns, schema.types, strict=True)], schema=schema)
        path = self.folder / f"shard-{len(self.counts):06d}.records.parquet"
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
        self.counts.append(len(self.rows))
        self.rows.clear()


def _empty_split(name: str, tally: _Tally, options: PrepareOptions) -> str:
    kept = tally.rules.total()
    if not kept:
        reasons = ", ".join(f"{c['records']:,} {reason}" for reason, c in sorted(tally.dropped.items()))
        return f"no sequence is left of {tally.records:,} records ({reasons or 'none read'}): there is nothing to train on."
    if name == "train":
        return (
            f"the train split got none of {kept:,} records: they fall into too few groups. Give more data, or "
            "--valid 0 --test 0."
        )
    share = {"valid": options.valid, "test": options.test}[name]
    return (
        f"the {name} split got none of {kept:,} records (--{name} {share:g}): the records fall into too few groups. "
        f"Give more data, another share, another --group, or --{name} 0."
    )


def _state_of(path: Path) -> tuple[int, int]:
    """Size and time of change. A file that has gone has neither."""
    try:
        status = path.stat()
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read a second time, for its digest: {error.strerror}.") from None
