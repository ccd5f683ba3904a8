"""`dnascale score`: alleles meet the reference, are scored in parts that survive a kill, and go back to their order.

The reference is read twice, contig by contig: once to compare every allele with it, so that nothing is computed for the wrong
genome, and once to cut out windows. No index is needed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dnascale.data.sources.formats import read
from dnascale.data.sources.input import Input
from dnascale.data.sources.record import Record
from dnascale.errors import DataError, UsageError
from dnascale.evaluate.language_model import LanguageModel
from dnascale.evaluate.likelihood import Likelihood
from dnascale.evaluate.ranks import rank_and_world, wait_for_all
from dnascale.evaluate.variants.alleles import Allele, Status, checked_codes_of, codes_of, same_bases
from dnascale.evaluate.variants.scores import ScoreOptions, Scoring
from dnascale.files import explained, write_whole
from dnascale.vocab import SOFT_MASK_BIT

#: Forwards of a window in one part: what is lost when a process is killed, a minute or so on a CPU.
_PART = 4096
#: A larger share of alleles whose reference differs means another genome build.
MOST_MISMATCHES = 0.01
_SHOWN = 10

#: What to score alleles against: gives sequences one after the other, as often as it is called.
Sequences = Callable[[], Iterable[tuple[str, "Contig"]]]


@dataclass
class Contig:
    """One sequence of the reference: `codes(start, end)` gives character codes uint8, without the bit of lower case."""

    length: int
    codes: Callable[[int, int], np.ndarray]


@dataclass
class Part:
    """Alleles that are scored together, by their number: of contigs that follow one another."""

    contigs: dict[str, list[int]] = field(default_factory=dict)

    @property
    def numbers(self) -> list[int]:
        return [number for numbers in self.contigs.values() for number in numbers]


def reference_of(sources: Sequence[Input]) -> Sequences:
    """The sequences of FASTA files (or any format that `prepare` reads), strictly checked."""

    def contigs() -> Iterator[tuple[str, Contig]]:
        for source in sources:
            for record in read(source):
                yield record.name, _contig(record)

    return contigs


def given_sequences(sequences: Mapping[str, bytes]) -> Sequences:
    """Sequences that are in memory. Raises DataError, when read, for letters that are no bases."""

    def contigs() -> Iterator[tuple[str, Contig]]:
        for name, letters in sequences.items():
            codes = checked_codes_of(letters, f"the {name}")
            yield name, Contig(len(codes), lambda start, end, codes=codes: codes[start:end])  # type: ignore[misc]

    return contigs


def _contig(record: Record) -> Contig:
    return Contig(len(record.bases), lambda start, end: record.codes(start, end) & ~np.uint8(SOFT_MASK_BIT))


def compare(
    alleles: list[Allele],
    sequences: Sequences,
    where: str,
    options: ScoreOptions,
    context: int,
    ignore_chr: bool = False,
    allow_mismatches: bool = False,
) -> list[str]:
    """Settles the status of every allele, and gives the sequences' names in their order.

    Raises DataError when none of the sequences is there, or too many alleles differ from the reference: another genome.
    """
    by_contig: dict[str, list[Allele]] = {}
    for allele in alleles:
        allele.settle(options.indels == "pll", context)
        by_contig.setdefault(allele.contig, []).append(allele)
    if ignore_chr and (both := next((name for name in by_contig if _toggled(name) in by_contig), None)) is not None:
        raise DataError(
            f"the variants are on {both!r} and on {_toggled(both)!r}, which --ignore-chr makes one: name it one way."
        )
    order: dict[str, None] = {}  # names, as a set in order
    other_name: dict[str, str] = {}
    for name, contig in sequences():
        toggled = _toggled(name)
        meant = name if name in by_contig else toggled if ignore_chr and toggled in by_contig else None
        if meant is None:
            if toggled in by_contig:
                other_name[toggled] = name
            continue
        if meant in order:
            raise DataError(f"{where} has the sequence {name!r} twice: which one is meant cannot be known.")
        order[meant] = None
        for allele in by_contig[meant]:
            _meet(allele, contig)
    absent = [name for name in by_contig if name not in order]
    named_otherwise = [name for name in absent if name in other_name]
    if named_otherwise:
        raise DataError(
            f"the variants are on {named_otherwise[0]!r}, and {where} has {other_name[named_otherwise[0]]!r}; if they are one, add "
            "--ignore-chr."
        )
    if absent and not order:
        raise DataError(
            f"{where} has none of the sequences that the variants are on ({', '.join(map(repr, absent[:5]))}): it is another "
            "reference, or names its sequences otherwise."
        )
    for name in absent:
        for allele in by_contig[name]:
            if allele.status is Status.scored:
                allele.status = Status.absent
    if not allow_mismatches:
        _refuse_another_genome(alleles, where)
    return list(order)


def mismatches(alleles: list[Allele]) -> list[str]:
    """The alleles that do not agree with the reference, in words: where, and what they say; the first ten."""
    wrong = [allele for allele in alleles if allele.status in (Status.mismatch, Status.outside)]
    shown = [
        f"{a.unit} {a.row}: {a.contig}:{a.start + 1} {a.ref.decode(errors='replace')}"
        + (" is not what the reference has there" if a.status is Status.mismatch else " lies outside the reference")
        for a in wrong[:_SHOWN]
    ]
    return shown + ([f"and {len(wrong) - _SHOWN:,} more"] if len(wrong) > _SHOWN else [])


def score(
    model: LanguageModel,
    alleles: list[Allele],
    sequences: Sequences,
    order: list[str],
    options: ScoreOptions,
    parts_folder: Path | None = None,
    ignore_chr: bool = False,
    batch_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Sets `llr` of every allele whose status is `scored`. `compare` has been called; `order` is what it gave.

    With a `parts_folder` what is done is kept there, found again by the next call, and dealt out over processes; only the
    first process has all scores afterwards. `progress` is told of alleles.
    """
    parts = _parts(alleles, order, options, model.context)
    total = sum(len(part.numbers) for part in parts)
    rank, world = rank_and_world() if parts_folder is not None else (0, 1)
    likelihood = Likelihood(model, model.asks_both(options.both_strands), batch_tokens)
    mine: dict[str, list[tuple[int, Part]]] = {}
    done = 0
    for number, part in enumerate(parts):
        if parts_folder is not None and _file(parts_folder, number).exists():
            done += len(part.numbers)
        elif number % world == rank:
            for name in part.contigs:
                mine.setdefault(name, []).append((number, part))
    progress(done, total)
    scores: dict[int, np.ndarray] = {}
    scoring = Scoring(likelihood, options)
    for name, contig in sequences() if mine else ():
        meant = name if name in mine else _toggled(name) if ignore_chr else name
        for number, part in mine.pop(meant, ()):
            scoring.add([alleles[at] for at in part.contigs[meant]], contig.codes, contig.length)
            if meant != next(reversed(part.contigs)):
                continue
            llr, scoring = scoring.answer(), Scoring(likelihood, options)
            if parts_folder is None:
                scores[number] = llr
            else:
                _write(parts_folder, number, llr)
            done += len(part.numbers)
            progress(done, total)
        if not mine:
            break
    if parts_folder is not None:
        wait_for_all()
        if rank:
            return
        scores = {number: np.frombuffer(_file(parts_folder, number).read_bytes()) for number in range(len(parts))}
    for number, part in enumerate(parts):
        for at, llr in zip(part.numbers, scores[number], strict=True):
            alleles[at].llr = float(llr)


def check_new_file(out: Path) -> None:
    """Raises UsageError when `out` is there already."""
    if out.exists():
        raise UsageError(f"{out} exists: choose another name, or remove it first.")


def _meet(allele: Allele, contig: Contig) -> None:
    if allele.status is not Status.scored:
        return
    if allele.start < 0 or allele.start + len(allele.ref) > contig.length:
        allele.status = Status.outside
    elif not same_bases(contig.codes(allele.start, allele.start + len(allele.ref)), codes_of(allele.ref)):
        allele.status = Status.mismatch


def _refuse_another_genome(alleles: list[Allele], where: str) -> None:
    wrong = [allele for allele in alleles if allele.status in (Status.mismatch, Status.outside)]
    met = [allele for allele in alleles if allele.status is Status.scored]
    if not wrong or len(wrong) <= MOST_MISMATCHES * (len(met) + len(wrong)):
        return
    listed = "".join(f"\n  {line}" for line in mismatches(alleles))
    raise DataError(
        f"{len(wrong):,} of {len(met) + len(wrong):,} alleles do not agree with {where}:{listed}\nIs it another genome build? "
        "Scores would mean nothing. Give the build that the variants were called on, or leave such alleles out with "
        "--allow-mismatches."
    )


def _parts(alleles: list[Allele], order: list[str], options: ScoreOptions, context: int) -> list[Part]:
    """Alleles by contig, then by position, cut where enough have come together. All alleles of a position stay together."""
    by_contig: dict[str, list[int]] = {name: [] for name in order}
    for number, allele in enumerate(alleles):
        if allele.status is Status.scored:
            by_contig[allele.contig].append(number)
    parts: list[Part] = []
    cost = _PART
    for name, numbers in by_contig.items():
        last = -1
        for number in sorted(numbers, key=lambda number: alleles[number].start):
            if cost >= _PART and alleles[number].start != last:
                parts.append(Part())
                cost = 0
            parts[-1].contigs.setdefault(name, []).append(number)
            cost += options.cost(alleles[number], context)
            last = alleles[number].start
    return parts


def _file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.float64"


def _write(folder: Path, number: int, llr: np.ndarray) -> None:
    path = _file(folder, number)
    try:
        write_whole(path, llr.astype(np.float64).tobytes())
    except OSError as error:
        raise explained(error, path, "What was scored before is kept") from error


def _toggled(name: str) -> str:
    return name.removeprefix("chr") if name.startswith("chr") else f"chr{name}"
