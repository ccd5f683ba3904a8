"""Stage 1: one input to sorted runs of records. A pure function of the plan and the number of the input."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.prepare.plan import Plan, Work, stamp
from dnascale.data.prepare.runs import ROW, RunWriter
from dnascale.data.sources import Input, ReadReport, Record, read
from dnascale.data.split import Sketcher, content_digest, group_key
from dnascale.data.take import Taker, clean
from dnascale.data.tally import Tally
from dnascale.errors import DataError
from dnascale.files import changed_meanwhile, write_whole
from dnascale.vocab import SOFT_MASK_BIT

Advance = Callable[[int], None]

#: Records of more bases are read and written in pieces of so many.
LONG_BASES = 1 << 20
#: Shorter ones wait until so many bytes are in use, of which each takes some beside its bases.
_HELD_BYTES, _RECORD_BYTES = 1 << 20, 512


def read_input(work: Work, number: int, advance: Advance) -> None:
    """Reads input `number` of the plan into its folder of the work folder. `advance` is called with bases as they are read.

    Raises DataError when the input is unusable, or is not what it was when the plan was made; all its problems are then in
    `work.problems(number)`.
    """
    plan, input = work.plan, work.plan.inputs[number]
    work.problems(number).unlink(missing_ok=True)
    with work.reading(number) as folder:
        reader = _Reader(plan, input, folder, advance)
        try:
            with reader.runs:
                for record in read(input, plan.options.reading(folder), reader.report):
                    reader.take(record)
                body = reader.finish()
            if stamp(input.location, input.bytes) != plan.stamps[number]:
                raise changed_meanwhile(input.name)
        except DataError as error:
            problems = [str(problem) for problem in reader.report.problems] or [str(error)]
            write_whole(work.problems(number), json.dumps(problems).encode(), durable=False)
            raise
        write_whole(folder / "done.json", json.dumps(body).encode(), durable=False)


def leave_out(work: Work, number: int, why: str) -> None:
    """Notes that input `number` is unusable and left out, in place of what reading it would give."""
    with work.reading(number) as folder:
        reader = _Reader(work.plan, work.plan.inputs[number], folder, lambda _: None)
        with reader.runs:
            body = reader.finish()
        body["source"] |= {"bytes": work.plan.stamps[number][0], "skipped": why}
        write_whole(folder / "done.json", json.dumps(body).encode(), durable=False)


class _Reader:
    """What happens to the records of one input, in turn, and what is noted of them."""

    def __init__(self, plan: Plan, input: Input, folder: Path, advance: Advance) -> None:
        self.input, self.folder, self.advance = input, folder, advance
        self.options, self.vocabulary = plan.options, plan.vocabulary
        self.report, self.tally = ReadReport(input.name, can_skip=True), Tally()
        self.rules: Counter[str] = Counter()
        self.base_a_token = self.vocabulary.one_base_a_token
        self.taker = Taker(self.options)
        self.separator = np.array([self.vocabulary.sep], dtype=self.vocabulary.dtype).tobytes()
        self.runs = RunWriter(folder, self.separator)
        self.waiting: list[Record] = []  # to be written together
        self.held = 0  # bytes, at most, that they keep in use
        self.sketcher = Sketcher(plan.sampled) if plan.sampled else None
        self.digests = bytearray()
        self.key_of = partial(hashlib.blake2b, digest_size=8, key=b"dnascale-order %d" % self.options.seed)

    def take(self, record: Record) -> None:
        """A record of the input: none, one or many to keep."""
        bases = len(record.bases)
        self.tally.read(bases)
        for taken in self.taker.take(record, self.tally):
            for kept in clean(taken, self.options, self.tally):
                self.keep(kept)
        self.wait(bases)

    def keep(self, record: Record) -> None:
        bases = len(record.bases)
        if bases > LONG_BASES:
            self.write_waiting()
            rows, texts = self.described([record])
            self.runs.add_long(rows, texts, self.vocabulary.encode_pieces(self.pieces(record)))
        else:
            self.waiting.append(record)
            self.wait(bases)

    def wait(self, bases: int) -> None:
        """Notes that so many bases were read, or wait to be written: the memory that waiting records keep in use."""
        self.held += bases + _RECORD_BYTES
        if self.held >= _HELD_BYTES:
            self.write_waiting()

    def write_waiting(self) -> None:
        """Writes the records that wait, all at once: what has to be done for each of them is little."""
        records, self.waiting, self.held = self.waiting, [], 0
        if not records:
            return
        rows, texts = self.described(records)
        codes = [record.codes() for record in records]
        if self.sketcher:
            for one in codes:
                self.sketcher.add(one)
        tokens = [self.vocabulary.encode_codes(one).data for one in codes]
        rows["tokens"] = [len(one) + 1 for one in tokens]
        self.runs.add(rows, texts, self.separator.join([*tokens, b""]))
        self.advance(int(rows["bases"].sum()))

    def described(self, records: list[Record]) -> tuple[np.ndarray, bytes]:
        """Rows of records, without tokens and places, and their texts."""
        rows = np.zeros(len(records), dtype=ROW)
        lengths = [len(record.bases) for record in records]
        self.tally.keep(sum(lengths), len(records))
        found = [self.options.grouping.of(record, self.input.name) for record in records]
        self.rules.update([rule for _, rule in found])
        names, labels = [record.name.encode() for record in records], [group.encode() for group, _ in found]
        starts, edges = [record.start for record in records], [self.edges(record) for record in records]
        keys = [self.key_of(b"%d %b" % place).digest() for place in zip(starts, names, strict=True)]
        rows["key"] = np.frombuffer(b"".join(keys), dtype="<u8")
        rows["group"] = [group_key(group) for group, _ in found]
        rows["bases"], rows["start"] = lengths, starts
        for column, texts in (("name", names), ("label", labels), ("edges", edges)):
            rows[column] = list(map(len, texts))
        if self.options.drop_duplicates:
            for record in records:
                self.digests += content_digest(record.codes, len(record.bases))
        return rows, b"".join(chain.from_iterable(zip(names, labels, edges, strict=True)))

    def pieces(self, record: Record) -> Iterator[np.ndarray]:
        """The codes of a long record."""
        bases = len(record.bases)
        for start in range(0, bases, LONG_BASES):
            codes = record.codes(start, start + LONG_BASES)
            if self.sketcher:
                self.sketcher.add(codes, whole=start + LONG_BASES >= bases)
            yield codes
            self.advance(len(codes))

    def edges(self, record: Record) -> bytes:
        """Where lower case begins and ends, uint64 offsets in the record: where the tokens do not tell to the base."""
        if self.base_a_token:
            return b""
        found, inside = [], False
        for start in range(0, len(record.bases), LONG_BASES):
            mask = record.codes(start, start + LONG_BASES) >= SOFT_MASK_BIT
            found.append(np.flatnonzero(np.diff(mask, prepend=inside)) + start)
            inside = bool(mask[-1])
        if inside:
            found.append(np.array([len(record.bases)]))
        return np.concatenate(found).astype("<u8").tobytes()

    def finish(self) -> dict[str, Any]:
        """Writes what was noted beside the runs, and gives the marker: the input as dataset.json describes it, and sums."""
        self.write_waiting()
        self.runs.finish()
        if self.options.drop_duplicates:
            (self.folder / "digests.bin").write_bytes(self.digests)
        if self.sketcher:
            for what, values in zip(("values", "counts"), self.sketcher.finish(), strict=True):
                values.tofile(self.folder / f"sample-{what}.bin")
        report = self.report
        if report.bad_records:  # these were read, and never given to `take`
            self.tally.records_in += report.bad_records
            self.tally.bases_in += report.bad_bases
            self.tally.drop("bad records", report.bad_bases, report.bad_records)
        source = {
            "name": Path(report.name).name, "bytes": report.bytes_read, "sha256": report.sha256, "format": report.format,
            "compression": report.compression, "records": report.records, "bases": report.bases,
            "bad_records": report.bad_records, "bad_bases": report.bad_bases,
            "problems": [str(problem) for problem in report.problems[:20]], "warnings": report.warnings,
        }  # fmt: skip
        return {
            "source": source, "tally": self.tally.to_dict(), "rules": dict(sorted(self.rules.items())),
            "runs": self.runs.runs, "records": self.runs.records, "sampled": self.sketcher is not None,
        }  # fmt: skip
