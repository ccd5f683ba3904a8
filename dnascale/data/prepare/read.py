"""Stage 1: one input to sorted runs of records. A pure function of the plan and the number of the input."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.prepare.plan import Plan, Work, stamp
from dnascale.data.prepare.runs import RunWriter
from dnascale.data.sources import Input, ReadReport, Record, group_of, read
from dnascale.data.tally import Tally
from dnascale.errors import DataError
from dnascale.files import write_whole

Advance = Callable[[int], None]

#: Records of more bases are not held in memory as tokens.
LONG_BASES = 1 << 20


def read_input(work: Work, number: int, advance: Advance) -> None:
    """Reads input `number` of the plan into its folder of the work folder. `advance` is called with bases as they are read.

    Raises DataError when the input is unusable, or is not what it was when the plan was made.
    """
    input = work.plan.inputs[number]
    reader = _Reader(work.plan, input, advance)
    with work.reading(number) as folder:
        with RunWriter(folder, reader.separator) as runs:
            for record in read(input, work.plan.options.of_sources(), reader.report):
                reader.take(record, runs)
            runs.flush()
        if stamp(input) != work.plan.stamps[number]:
            raise DataError(f"{input.name} changed while it was read: prepare again when nothing writes to it.")
        body = reader.describe() | {"runs": runs.runs, "bytes": runs.bytes_written}
        write_whole(folder / "done.json", json.dumps(body).encode())


def leave_out(work: Work, number: int, why: str) -> None:
    """Notes that input `number` is unusable and left out, in place of what reading it would give."""
    body = _Reader(work.plan, work.plan.inputs[number], lambda _: None).describe() | {"runs": [], "bytes": 0}
    body["source"] |= {"bytes": work.plan.stamps[number][0], "skipped": why}
    with work.reading(number) as folder:
        write_whole(folder / "done.json", json.dumps(body).encode())


class _Reader:
    """What happens to the records of one input, in turn."""

    def __init__(self, plan: Plan, input: Input, advance: Advance) -> None:
        self.options, self.vocabulary, self.advance = plan.options, plan.vocabulary, advance
        self.name = Path(input.name).name
        self.pattern = re.compile(self.options.group) if self.options.group else None
        self.report = ReadReport(input.name)
        self.tally = Tally()
        self.rules: Counter[str] = Counter()
        self.separator = np.array([self.vocabulary.sep], dtype=self.vocabulary.dtype).tobytes()
        self.key_of = partial(hashlib.blake2b, digest_size=8, key=b"dnascale-order %d" % self.options.seed)

    def take(self, record: Record, runs: RunWriter) -> None:
        bases = len(record.bases)
        self.tally.read(bases)
        if reason := self.unfit(record):
            self.tally.drop(reason, bases)
            return
        self.tally.keep(bases)
        group, rule = group_of(record, self.pattern)
        self.rules[rule] += 1
        name, start = record.name.encode(), 0
        key = int.from_bytes(self.key_of(b"%d %b" % (start, name)).digest(), "little")
        what = (key, group_hash(group), name, group.encode(), start, bases)
        if bases <= LONG_BASES:
            runs.add(*what, tokens=self.vocabulary.encode_codes(record.codes()).data)
            self.advance(bases)
        else:
            runs.add_long(*what, pieces=self.vocabulary.encode_pieces(self.codes(record)))

    def codes(self, record: Record) -> Iterator[np.ndarray]:
        for start in range(0, len(record.bases), LONG_BASES):
            piece = record.codes(start, start + LONG_BASES)
            yield piece
            self.advance(len(piece))

    def unfit(self, record: Record) -> str | None:
        if not len(record.bases):
            return "empty sequence"
        if len(record.bases) < self.options.min_length:
            return f"shorter than {self.options.min_length} bases"
        return None

    def describe(self) -> dict[str, Any]:
        """For the marker: the input as dataset.json describes it, and what became of its records."""
        report = self.report
        source = {
            "name": self.name, "bytes": report.bytes_read, "sha256": report.sha256, "format": report.format,
            "compression": report.compression, "records": report.records, "bases": report.bases,
            "warnings": report.warnings,
        }  # fmt: skip
        return {"source": source, "tally": self.tally.to_dict(), "rules": dict(sorted(self.rules.items()))}


def group_hash(group: str) -> int:
    """64 bits that stand for a group from here on, and its place between the splits."""
    return int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8, person=b"dnascale-split").digest())
