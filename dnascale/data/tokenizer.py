"""Learning tokens from the training split of a data set, and the folder that they are kept in."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from dnascale.data.read import split_records
from dnascale.data.shards import Dataset
from dnascale.errors import DataError, UsageError
from dnascale.files import check_new_folder, whole_folder
from dnascale.vocab import CHARACTER, Vocabulary
from dnascale.vocab.bpe import BpeVocabulary, learn
from dnascale.vocab.load import FILE

#: Letters, special tokens and one learned token; and what fits into 15 bits beside the soft mask.
SMALLEST, LARGEST = len(CHARACTER) + 1, 1 << 15


def train_tokenizer(
    dataset: Dataset, size: int, out: Path, max_bases: int = 20_000_000, show_progress: bool = False
) -> BpeVocabulary:
    """Learns `size` tokens from the training split, and writes the tokenizer folder `out`, which appears whole or not at all.

    `max_bases` are a sample of the split, from the beginning of each of its shards; learning takes time and memory in
    proportion. Raises UsageError for a size that cannot be, DataError when the sequences teach fewer tokens.
    """
    if not SMALLEST <= size <= LARGEST:
        raise UsageError(
            f"--vocab-size {size:,} must be {SMALLEST} to {LARGEST:,}: tokens and the soft mask must fit into 16 bits."
        )
    if max_bases < 1:
        raise UsageError(f"--max-bases {max_bases} must be at least 1.")
    check_new_folder(out)
    split = dataset.splits["train"]
    most = math.ceil(max_bases * split.tokens / max(split.bases, 1))
    records = _first_bases(split_records(dataset, "train", most), max_bases)
    vocabulary = learn(map(CHARACTER.letters, records), size, show_progress)
    bases = sum(map(len, records))
    if len(vocabulary) < size:
        raise DataError(
            f"{bases:,} bases of {dataset.location} teach only {len(vocabulary):,} tokens: give a --vocab-size up to that, or "
            "more data."
        )
    learned_from = {"data": dataset.name, "fingerprint": dataset.fingerprint, "split": "train", "bases": bases}
    with whole_folder(out) as work:
        write_tokenizer(vocabulary, work, learned_from)
    return vocabulary


def _first_bases(records: list[np.ndarray], most: int) -> list[np.ndarray]:
    """The first so many bases of records; the last may be cut."""
    taken = []
    for record in records:
        taken.append(record[:most])
        most -= len(taken[-1])
        if not most:
            break
    return taken


def write_tokenizer(vocabulary: Vocabulary, folder: Path, learned_from: dict[str, Any]) -> None:
    """A plain Hugging Face tokenizer, and beside it what dnascale reads."""
    vocabulary.tokenizer(None).save_pretrained(folder)
    body = vocabulary.to_json() | {"learned_from": learned_from}
    (folder / FILE).write_text(json.dumps(body, indent=1) + "\n")
