"""Embeddings: hidden states of a model, averaged over sequences or windows, or base by base."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal

import numpy as np

from dnascale.errors import NumericsError, UsageError
from dnascale.evaluate.language_model import BASE_OF_CODE, LanguageModel
from dnascale.evaluate.likelihood import BATCH_TOKENS, reverse_complement
from dnascale.evaluate.variants.alleles import checked_codes_of

Per = Literal["sequence", "window", "base"]
#: Bases of sequences whose windows are sorted by length together, which makes batches of one length.
_TOGETHER = 1 << 17


@dataclass(frozen=True)
class EmbedOptions:
    """How sequences are embedded.

    per: one vector a sequence, a window of `window` bases (None: what the model takes), or a base. layer: -1 is the last after
    its norm, 0 the embeddings, 1 what the first layer gives. both_strands: the mean of both, base by base; None: as the model was trained.
    """

    per: Per = "sequence"
    layer: int = -1
    both_strands: bool | None = None
    window: int | None = None
    batch_tokens: int | None = None


@dataclass(frozen=True)
class Embedding:
    """Of the bases start to end (0-based, half-open) of a sequence: float32 [H], the mean of its A, C, G and T; nan without any.

    With per=base, of one position, whatever its letter.
    """

    name: str
    start: int
    end: int
    values: np.ndarray


@dataclass(frozen=True)
class _Piece:
    """A window start to end of sequence `number`, of which the bases first to last are kept."""

    number: int
    start: int
    end: int
    first: int
    last: int


def embed(
    model: LanguageModel, sequences: Iterable[tuple[str, bytes]], options: EmbedOptions | None = None
) -> Iterator[Embedding]:
    """Embeddings of (name, letters), in their order. Raises UsageError for an option that does not fit the model, DataError for letters
    that are no bases, NumericsError for states that are not finite.

    A sequence longer than the model takes is read in windows that overlap by half: each base comes from the window in which it is
    farther from the ends.
    """
    options = options or EmbedOptions()
    if options.window is not None and options.window < 1:
        raise UsageError(f"windows of {options.window} bases are none: 1 or more.")
    for batch in batches(sequences):
        yield from _embed_batch(
            model, [(name, checked_codes_of(letters, f"the sequence {name!r}")) for name, letters in batch], options
        )


def batches(sequences: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    """Sequences in groups of about as many bases, in their order."""
    batch: list[tuple[str, bytes]] = []
    bases = 0
    for name, letters in sequences:
        batch.append((name, letters))
        bases += len(letters)
        if bases >= _TOGETHER:
            yield batch
            batch, bases = [], 0
    if batch:
        yield batch


def pieces(number: int, length: int, context: int) -> list[_Piece]:
    """Windows over a sequence of `length` bases, whose kept bases are all of it, each once."""
    if length <= context:
        return [_Piece(number, 0, length, 0, length)] if length else []
    step = max(1, context // 2)
    starts = [*range(0, length - context, step), length - context]
    middles = [(start + context + after) // 2 for start, after in pairwise(starts)]
    edges = zip(starts, [0, *middles], [*middles, length], strict=True)
    return [_Piece(number, start, start + context, first, last) for start, first, last in edges]


def _embed_batch(
    model: LanguageModel, batch: Sequence[tuple[str, np.ndarray]], options: EmbedOptions
) -> Iterator[Embedding]:
    width = options.window or model.context if options.per == "window" else 1
    kept = [_Kept(codes, model.size, None if options.per == "sequence" else width) for _, codes in batch]
    todo = [piece for number, (_, codes) in enumerate(batch) for piece in pieces(number, len(codes), model.context)]
    todo.sort(key=lambda piece: piece.end - piece.start)
    for length, same in groupby(todo, key=lambda piece: piece.end - piece.start):
        group = list(same)
        rows = max(1, (options.batch_tokens or BATCH_TOKENS[model.device.type]) // length)
        for begin in range(0, len(group), rows):
            some = group[begin : begin + rows]
            found = _hidden(model, np.stack([batch[p.number][1][p.start : p.end] for p in some]), options)
            for piece, hidden in zip(some, found, strict=True):
                kept[piece.number].add(piece.first, hidden[piece.first - piece.start : piece.last - piece.start])
    for (name, codes), of_one in zip(batch, kept, strict=True):
        for number, values in enumerate(of_one.means(per_base=options.per == "base")):
            yield Embedding(name, number * of_one.width, min((number + 1) * of_one.width, len(codes)), values)


class _Kept:
    """Sums of hidden states over stretches of `width` bases of a sequence, all of it if None."""

    def __init__(self, codes: np.ndarray, size: int, width: int | None) -> None:
        self.width = max(1, len(codes)) if width is None else width
        self.single = width == 1
        count = 1 if width is None else -(-len(codes) // self.width)
        self.known = BASE_OF_CODE[codes] >= 0
        self.sums = np.zeros((count, size), dtype=np.float32 if self.single else np.float64)
        self.bases = np.zeros(count, dtype=np.int64)

    def add(self, first: int, states: np.ndarray) -> None:
        """States float32 [n, H] of the bases from `first` on."""
        if self.single:
            self.sums[first : first + len(states)] = states
            return
        known = self.known[first : first + len(states)]
        place = (first + np.flatnonzero(known)) // self.width
        if len(place):
            begins = np.flatnonzero(np.diff(place, prepend=-1))  # where another stretch begins
            self.sums[place[begins]] += np.add.reduceat(states[known], begins, axis=0, dtype=np.float64)
            self.bases[place[begins]] += np.diff(begins, append=len(place))

    def means(self, per_base: bool) -> np.ndarray:
        """float32 [stretches, H]: of A, C, G and T; nan without any. A single base, whatever it is, if `per_base`."""
        if per_base:
            return self.sums
        bases = self.known.astype(np.int64) if self.single else self.bases
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self.sums / np.where(bases > 0, bases, np.nan)[:, None]
        return means.astype(np.float32)


def _hidden(model: LanguageModel, codes: np.ndarray, options: EmbedOptions) -> np.ndarray:
    """float32 [B, S, H]."""
    hidden = model.hidden(codes, options.layer)
    if model.asks_both(options.both_strands):
        hidden = (hidden + model.hidden(reverse_complement(codes), options.layer).flip(1)) / 2
    found: np.ndarray = hidden.cpu().numpy()
    if not np.isfinite(found).all():
        raise NumericsError(f"{model.name} gives hidden states that are not finite: its weights are damaged.")
    return found
