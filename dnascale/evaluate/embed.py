"""`dnascale embed`: hidden states of a model, averaged over sequences or windows, or base by base."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dnascale.data.sources.formats import read
from dnascale.data.sources.locate import find
from dnascale.errors import DataError, NumericsError, UsageError
from dnascale.evaluate.language_model import BASE_OF_CODE, LanguageModel, load_model
from dnascale.evaluate.likelihood import BATCH_TOKENS, reverse_complement
from dnascale.evaluate.variants.alleles import codes_of
from dnascale.files import check_new_folder, explained, sync

Per = Literal["sequence", "window", "base"]
KINDS = (".parquet", ".npy")
#: Bases of sequences whose windows are sorted by length together, which makes batches of one length.
_TOGETHER = 1 << 17


@dataclass(frozen=True)
class EmbedOptions:
    """How sequences are embedded.

    per: one vector a sequence, a window of `window` bases (None: what the model takes), or a base. layer: -1 is the last after
    its norm, 0 the embeddings, 1 what the first layer gives. both_strands: the mean of both, base by base.
    """

    per: Per = "sequence"
    layer: int = -1
    both_strands: bool = True
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
    """Embeddings of (name, letters), in their order. Raises UsageError for an option that does not fit the model, NumericsError
    for states that are not finite.

    A sequence longer than the model takes is read in windows that overlap by half: each base comes from the window in which it is
    farther from the ends.
    """
    options = options or EmbedOptions()
    if options.window is not None and options.window < 1:
        raise UsageError(f"windows of {options.window} bases are none: 1 or more.")
    batch: list[tuple[str, np.ndarray]] = []
    tokens = 0
    for name, letters in sequences:
        batch.append((name, codes_of(letters)))
        tokens += len(letters)
        if tokens >= _TOGETHER:
            yield from _embed_batch(model, batch, options)
            batch, tokens = [], 0
    yield from _embed_batch(model, batch, options)


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
        count = 1 if width is None else -(-len(codes) // self.width)
        self.known = BASE_OF_CODE[codes] >= 0
        self.sums = np.zeros((count, size), dtype=np.float32 if width == 1 else np.float64)
        self.bases = np.zeros(count, dtype=np.int64)

    def add(self, first: int, states: np.ndarray) -> None:
        """States float32 [n, H] of the bases from `first` on."""
        if self.width == 1:
            self.sums[first : first + len(states)] = states
            return
        known = self.known[first : first + len(states)]
        place = (first + np.flatnonzero(known)) // self.width
        np.add.at(self.sums, place, states[known])
        np.add.at(self.bases, place, 1)

    def means(self, per_base: bool) -> np.ndarray:
        """float32 [stretches, H]: of A, C, G and T; nan without any. A single base, whatever it is, if `per_base`."""
        if per_base:
            return self.sums
        bases = self.known.astype(np.int64) if self.width == 1 else self.bases
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self.sums / np.where(bases > 0, bases, np.nan)[:, None]
        return means.astype(np.float32)


def _hidden(model: LanguageModel, codes: np.ndarray, options: EmbedOptions) -> np.ndarray:
    """float32 [B, S, H]."""
    hidden = model.hidden(codes, options.layer)
    if options.both_strands:
        hidden = (hidden + model.hidden(reverse_complement(codes), options.layer).flip(1)) / 2
    found: np.ndarray = hidden.cpu().numpy()
    if not np.isfinite(found).all():
        raise NumericsError(f"{model.name} gives hidden states that are not finite: its weights are damaged.")
    return found


def embed_file(
    model: Path,
    sequences: Sequence[str],
    out: Path,
    options: EmbedOptions,
    settings: dict[str, Any],
    progress: Callable[[int], None] = lambda _sequences: None,
) -> int:
    """Embeds the records of files of any format that `prepare` reads into `out`; gives the number of vectors.

    Parquet: name, start, end (0-based, half-open), embedding. npy: float32 [n, H], and what each row is in NAME.tsv beside it.
    `out` appears whole or not at all. `settings`: device, precision and context of `load_model`. Raises UsageError, DataError,
    CheckpointError or SpaceError.
    """
    if out.suffix not in KINDS:
        raise UsageError(f"{out} is neither .parquet nor .npy.")
    check_new_folder(out)  # the same holds for a file
    beside = out.with_suffix(".tsv")
    if out.suffix == ".npy" and beside.exists():
        raise UsageError(f"{beside} exists, which is to say what the rows of {out.name} are: choose another name.")
    inputs = find(list(sequences))
    loaded = load_model(model, **settings)

    def records() -> Iterator[tuple[str, bytes]]:
        for input in inputs:
            for record in read(input):
                yield record.name, record.bases[:]
                progress(1)

    work = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write = _write_parquet if out.suffix == ".parquet" else _write_npy
        count = write(embed(loaded, records(), options), work, loaded.size)
        if not count:
            raise DataError(f"{', '.join(sequences)} has no base to embed.")
        if out.suffix == ".npy":
            _rows_of(work).replace(beside)
        sync(work)
        work.replace(out)
    except OSError as error:
        raise explained(error, out) from error
    finally:
        work.unlink(missing_ok=True)
        _rows_of(work).unlink(missing_ok=True)
    return count


def _write_parquet(embeddings: Iterator[Embedding], path: Path, size: int) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [
        ("name", pa.string()),
        ("start", pa.int64()),
        ("end", pa.int64()),
        ("embedding", pa.list_(pa.float32(), size)),
    ]
    schema, count = pa.schema(fields), 0
    with pq.ParquetWriter(path, schema) as file:
        for rows in _chunks(embeddings):
            values = pa.array(np.concatenate([row.values for row in rows]).astype(np.float32))
            columns = [pa.array([getattr(row, field) for row in rows]) for field, _ in fields[:3]]
            vectors = pa.FixedSizeListArray.from_arrays(values, size)
            file.write_table(pa.Table.from_arrays([*columns, vectors], schema=schema))
            count += len(rows)
    return count


def _write_npy(embeddings: Iterator[Embedding], path: Path, size: int) -> int:
    """The header has room for any number of rows, and is written again when their number is known."""
    count = 0
    with path.open("wb") as file, _rows_of(path).open("w") as names:
        names.write("name\tstart\tend\n")
        file.write(_npy_header(0, size))
        for rows in _chunks(embeddings):
            file.write(np.stack([row.values for row in rows]).astype("<f4").tobytes())
            names.writelines(f"{row.name}\t{row.start}\t{row.end}\n" for row in rows)
            count += len(rows)
        file.seek(0)
        file.write(_npy_header(count, size))
    return count


def _npy_header(count: int, size: int) -> bytes:
    """Format 1.0 of numpy.lib.format, 128 bytes."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({count}, {size}), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + text.ljust(117).encode() + b"\n"


def _rows_of(work: Path) -> Path:
    return work.with_name(work.name + ".tsv")


def _chunks(embeddings: Iterator[Embedding], rows: int = 4096) -> Iterator[list[Embedding]]:
    chunk: list[Embedding] = []
    for one in embeddings:
        chunk.append(one)
        if len(chunk) == rows:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
