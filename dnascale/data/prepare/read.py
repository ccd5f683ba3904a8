"""Stage 1: one input to sorted runs of records. A pure function of the plan and the number of the input."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from dnascale.data.prepare.options import PrepareOptions
from dnascale.data.prepare.plan import Plan, Work, stamp
from dnascale.data.prepare.runs import RunWriter
from dnascale.data.sources import ReadReport, Record, group_of, read_fasta
from dnascale.data.tally import Tally
from dnascale.errors import DataError
from dnascale.files import write_whole
from dnascale.vocab import Vocabulary

Advance = Callable[[int], None]

#: Records of more bases are not held in memory as tokens.
LONG_BASES = 1 << 20


def read_input(work: Work, number: int, advance: Advance) -> None:
    """Reads input `number` of the plan into its folder of the work folder. `advance` is called with bases as they are read.

    Raises DataError when the input is unusable or changes meanwhile.
    """
    with work.reading(number) as folder:
        body = _read(work.plan, number, folder, advance)
        write_whole(folder / "done.json", json.dumps(body).encode())


def _read(plan: Plan, number: int, folder: Path, advance: Advance) -> dict[str, Any]:
    location = Path(plan.inputs[number])
    reader = _Reader(plan.options, plan.vocabulary, location, advance)
    with ThreadPoolExecutor(1) as helper:  # hashing leaves the interpreter to the reader
        digest = helper.submit(_file_digest, location)
        with RunWriter(folder, bytes([plan.vocabulary.sep])) as runs:
            for record in read_fasta(location, reader.report):
                reader.take(record, runs)
            runs.flush()
        sha256 = digest.result()
    if stamp(str(location)) != plan.stamps[number]:
        raise DataError(f"{location} changed while it was read: prepare again when nothing writes to it.")
    return reader.describe() | {
        "source": reader.source(plan.stamps[number][0], sha256),
        "runs": runs.runs,
        "records": runs.records,
        "bytes": runs.bytes_written,
    }


def leave_out(work: Work, number: int, why: str) -> None:
    """Notes that input `number` is unusable and left out, in place of what reading it would give."""
    location = Path(work.plan.inputs[number])
    reader = _Reader(work.plan.options, work.plan.vocabulary, location, lambda _: None)
    body = reader.describe() | {
        "source": reader.source(work.plan.stamps[number][0], None) | {"skipped": why},
        "runs": [],
        "records": 0,
        "bytes": 0,
    }
    with work.reading(number) as folder:
        write_whole(folder / "done.json", json.dumps(body).encode())


class _Reader:
    """What happens to the records of one input, in turn."""

    def __init__(self, options: PrepareOptions, vocabulary: Vocabulary, path: Path, advance: Advance) -> None:
        self.options, self.vocabulary, self.advance = options, vocabulary, advance
        self.pattern = re.compile(options.group) if options.group else None
        self.report = ReadReport(path=path)
        self.tally = Tally()
        self.rules: Counter[str] = Counter()
        self.longest = 0
        self.table = bytes(a | b for a, b in zip(vocabulary.byte_table, vocabulary.soft_mask_table, strict=True))
        self.key_of = partial(hashlib.blake2b, digest_size=8, key=b"dnascale-order %d" % options.seed)

    def take(self, record: Record, runs: RunWriter) -> None:
        bases = len(record.bases)
        self.tally.read(bases)
        if reason := self.unfit(record):
            self.tally.drop(reason, bases)
            return
        self.tally.keep(bases)
        group, rule = group_of(record, self.pattern)
        self.rules[rule] += 1
        self.longest = max(self.longest, bases)
        name, start = record.name.encode(), 0
        key = int.from_bytes(self.key_of(b"%d %b" % (start, name)).digest(), "little")
        what = (key, group_hash(group), name, group.encode(), start, bases)
        if bases <= LONG_BASES:
            runs.add(*what, tokens=record.bases.translate(self.table))
            self.advance(bases)
        else:
            runs.add_long(*what, pieces=self.pieces(record))

    def pieces(self, record: Record) -> Iterator[bytes]:
        for start in range(0, len(record.bases), LONG_BASES):
            piece = record.bases[start : start + LONG_BASES]
            yield piece.translate(self.table)
            self.advance(len(piece))

    def unfit(self, record: Record) -> str | None:
        if not record.bases:
            return "empty sequence"
        if len(record.bases) < self.options.min_length:
            return f"shorter than {self.options.min_length} bases"
        return None

    def source(self, size: int, sha256: str | None) -> dict[str, Any]:
        """The input, as dataset.json describes it."""
        report = self.report
        return {
            "name": report.path.name, "bytes": size, "sha256": sha256, "records": report.records, "bases": report.bases,
            "compression": report.compression, "warnings": report.warnings,
        }  # fmt: skip

    def describe(self) -> dict[str, Any]:
        return {"tally": self.tally.to_dict(), "rules": dict(sorted(self.rules.items())), "longest": self.longest}


def group_hash(group: str) -> int:
    """64 bits that stand for a group from here on, and its place between the splits."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8, person=b"dnascale-split").digest())


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read a second time, for its digest: {error.strerror}.") from None
