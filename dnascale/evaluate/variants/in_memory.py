"""Scores of variants of sequences that are in memory, for programs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dnascale.evaluate.language_model import LanguageModel
from dnascale.evaluate.variants.alleles import Allele
from dnascale.evaluate.variants.run import compare, given_sequences, score
from dnascale.evaluate.variants.scores import ScoreOptions


@dataclass(frozen=True)
class Variant:
    """`position`: of the first base of `reference`, from 1. Alleles are letters, of any length."""

    sequence: str
    position: int
    reference: str
    alternative: str


@dataclass(frozen=True)
class Score:
    """`llr`: ln p(alternative) - ln p(reference), nats; None where there is none, and `status` says why."""

    variant: Variant
    llr: float | None
    status: str


def score_variants(
    model: LanguageModel,
    sequences: Mapping[str, str | bytes],
    variants: Iterable[Variant],
    options: ScoreOptions | None = None,
    allow_mismatches: bool = False,
    batch_tokens: int | None = None,
) -> list[Score]:
    """One score a variant, in their order: what `dnascale score` gives for the same variants of a FASTA of the sequences.

    Raises DataError when over 1 % of the variants do not agree with the sequences, unless `allow_mismatches`, or a sequence has
    letters that are no bases; NumericsError when the model gives no finite number.
    """
    options, given = options or ScoreOptions(), list(variants)
    alleles = [
        Allele(number, one.sequence, one.position - 1, one.reference.encode(), one.alternative.encode())
        for number, one in enumerate(given, start=1)
    ]
    letters = {name: text.encode() if isinstance(text, str) else text for name, text in sequences.items()}
    read = given_sequences(letters)
    order = compare(alleles, read, "what was given", options, model.context, allow_mismatches=allow_mismatches)
    score(model, alleles, read, order, options, batch_tokens=batch_tokens)
    return [
        Score(one, None if allele.llr != allele.llr else allele.llr, str(allele.status))
        for one, allele in zip(given, alleles, strict=True)
    ]
