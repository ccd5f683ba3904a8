"""Vocabularies by name, and from what data sets and tokenizer folders say of them."""

import re
from typing import Any

from dnascale.errors import DataError, UsageError
from dnascale.vocab.character import CHARACTER, Vocabulary
from dnascale.vocab.kmer import KmerVocabulary

_KMER = re.compile(r"kmer:(\d+)(:overlap)?")


def load_vocabulary(spec: str) -> Vocabulary:
    """`character`, `kmer:K` or `kmer:K:overlap`. Raises UsageError for anything else."""
    if spec == "character":
        return CHARACTER
    if found := _KMER.fullmatch(spec):
        return KmerVocabulary.of(int(found[1]), overlap=found[2] is not None)
    raise UsageError(f"there is no tokenizer '{spec}': use character, kmer:K (e.g. kmer:6) or kmer:K:overlap.")


def vocabulary_from_json(body: dict[str, Any], where: str) -> Vocabulary:
    """What `Vocabulary.to_json` gave, read from `where`. Raises DataError when it was changed, or a newer dnascale made it."""
    kind = body.get("kind", "character")
    if kind not in ("character", "kmer"):
        raise DataError(f"{where}: a tokenizer of kind {kind!r} is not known to this dnascale: upgrade dnascale.")
    try:
        if kind == "character":
            vocabulary = Vocabulary(body["name"], tuple(body["tokens"]), body["bases"])
        else:
            vocabulary = KmerVocabulary.of(body["k"], body["overlap"])
        right = vocabulary.digest == body["sha256"]
    except (KeyError, TypeError, ValueError, UsageError):
        right = False
    if not right:
        raise DataError(
            f"{where}: the tokenizer does not match its own digest: it was edited or damaged. Copy it again."
        )
    return vocabulary
