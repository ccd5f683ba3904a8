"""Vocabularies by name, and from what data sets and tokenizer folders say of them."""

import json
import re
from pathlib import Path
from typing import Any

from dnascale.errors import DataError, UsageError
from dnascale.vocab.bpe import BpeVocabulary
from dnascale.vocab.character import CHARACTER, Vocabulary
from dnascale.vocab.kmer import KmerVocabulary

#: In a run and in a tokenizer folder, what dnascale reads.
FILE = "vocabulary.json"
_KMER = re.compile(r"kmer:(\d+)(:overlap)?")


def load_vocabulary(spec: str) -> Vocabulary:
    """`character`, `kmer:K`, `kmer:K:overlap`, or the folder that `dnascale tokenizer train` made.

    Raises UsageError for anything else, DataError for a damaged folder.
    """
    if spec == "character":
        return CHARACTER
    if found := _KMER.fullmatch(spec):
        return KmerVocabulary.of(int(found[1]), overlap=found[2] is not None)
    folder = Path(spec)
    if (folder / FILE).is_file():
        return read_vocabulary(folder / FILE)
    if folder.is_dir():
        raise UsageError(f"{folder} is no tokenizer folder: it has no {FILE} (`dnascale tokenizer train` makes one).")
    raise UsageError(
        f"there is no tokenizer '{spec}': use character, kmer:K (e.g. kmer:6), kmer:K:overlap, or a folder that `dnascale "
        "tokenizer train` made."
    )


def read_vocabulary(path: Path) -> Vocabulary:
    """Of a run or of a tokenizer folder. Raises DataError when it cannot be read."""
    try:
        body = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): copy it again.") from None
    return vocabulary_from_json(body, str(path))


def vocabulary_from_json(body: dict[str, Any], where: str) -> Vocabulary:
    """What `Vocabulary.to_json` gave, read from `where`. Raises DataError when it was changed, or a newer dnascale made it."""
    kind = body.get("kind", "character") if isinstance(body, dict) else None
    if kind not in ("character", "kmer", "bpe"):
        raise DataError(f"{where}: a tokenizer of kind {kind!r} is not known to this dnascale: upgrade dnascale.")
    try:
        if kind == "character":
            vocabulary = Vocabulary(body["name"], tuple(body["tokens"]), body["bases"])
        elif kind == "kmer":
            vocabulary = KmerVocabulary.of(body["k"], body["overlap"])
        else:
            vocabulary = BpeVocabulary.of((left, right) for left, right in body["merges"])
        right = vocabulary.digest == body["sha256"]
    except (KeyError, TypeError, ValueError, UsageError):
        right = False
    if not right:
        raise DataError(
            f"{where}: the tokenizer does not match its own digest: it was edited or damaged. Copy it again."
        )
    return vocabulary
