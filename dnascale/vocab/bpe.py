"""Byte-pair encoding: tokens of many lengths, learned from sequence, the most frequent neighbours joined first.

Runs of A, C, G and T are cut into words of `WORD` bases, which tokens do not cross, and each word is joined up by the learned
merges, the earliest first. All other letters are tokens of one letter. No base is lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dnascale.vocab.character import LETTERS, PREDICTED_BASES, SOFT_MASK_BIT, SPECIAL_TOKENS, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Bases of a word: so many that its ends cost few tokens, so few that joining it up stays fast.
WORD = 512
#: A pair of tokens that stands only once in the training sequences teaches nothing.
_LEAST_PAIRS = 2

Merges = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class BpeVocabulary(Vocabulary):
    """Letters, special tokens, and what the merges make, in the order in which they were learned."""

    merges: Merges

    @classmethod
    def of(cls, merges: Iterable[tuple[str, str]]) -> "BpeVocabulary":
        """The vocabulary of merges in their order. Raises ValueError for one of parts that were not made before."""
        given = tuple((left, right) for left, right in merges)
        made = dict.fromkeys(LETTERS[:PREDICTED_BASES])
        for left, right in given:
            if left not in made or right not in made:
                raise ValueError(f"the merge of {left!r} and {right!r} comes before its parts")
            made[left + right] = None  # which two merges may both make
        longer = tuple(made)[PREDICTED_BASES:]
        tokens = LETTERS + SPECIAL_TOKENS + longer
        return cls(f"bpe:{len(tokens)}", tokens, len(LETTERS), given)

    @property
    def has_other_strand(self) -> bool:
        return False

    @property
    def in_words(self) -> str:
        return "Tokens are pieces of A, C, G, T learned by byte-pair encoding; other letters are single-letter tokens"

    def _content(self) -> Any:
        return {"tokens": self.tokens, "word": WORD, **self._own_json()}

    def _own_json(self) -> dict[str, Any]:
        return {"kind": "bpe", "merges": [list(pair) for pair in self.merges]}

    # --- letters to tokens ---

    def _encode(self, codes: np.ndarray) -> np.ndarray:
        letters = self.letters(codes)
        # Of a batch of one, which spares the offsets that `encode` computes.
        ids = np.array(self._fast.encode_batch_fast([letters])[0].ids if letters else [], dtype=np.int64)
        tokens, lower = ids.astype(self.dtype), codes >= SOFT_MASK_BIT
        if lower.any():
            sizes = self.bases_per_token[ids]
            ends = np.cumsum(sizes)
            before = np.append(0, np.cumsum(lower))
            soft = 2 * (before[ends] - before[ends - sizes]) > sizes
            tokens |= soft.astype(self.dtype) * self.dtype.type(self.soft_mask_bit)
        return tokens

    def _encode_beginning(self, codes: np.ndarray) -> tuple[np.ndarray, int]:
        settled = self._whole_units(codes, WORD)
        return self._encode(codes[:settled]), settled

    @cached_property
    def _fast(self) -> "Tokenizer":
        """The tokenizer of letters in upper case without special tokens: of sequence alone."""
        backend = self._backend()
        backend.normalizer = None
        return backend

    def _backend(self) -> "Tokenizer":
        from tokenizers import Tokenizer, models

        like = super()._backend()
        ids = {token: number for number, token in enumerate(self.tokens)}
        # No cache: of long words none comes twice.
        backend = Tokenizer(models.BPE(vocab=ids, merges=list(self.merges), unk_token="[UNK]", cache_capacity=0))
        backend.normalizer, backend.pre_tokenizer, backend.decoder = like.normalizer, like.pre_tokenizer, like.decoder
        return backend

    def _words(self) -> str:
        return words(WORD)


def words(longest: int) -> str:
    """Regular expression whose matches are words: runs of A, C, G, T in parts, and all other letters alone."""
    return rf"[ACGT]{{1,{longest}}}|[\s\S]"


def learn(sequences: Iterable[str], size: int, show_progress: bool = False) -> BpeVocabulary:
    """A vocabulary of up to `size` tokens, letters and special tokens included, from sequences in upper case.

    The same sequences give the same vocabulary, whatever the number of threads. It is smaller when the sequences have too few
    pairs that come again.
    """
    import json

    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(words(WORD)), "isolated")
    bases = LETTERS[:PREDICTED_BASES]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(LETTERS) - len(SPECIAL_TOKENS) + PREDICTED_BASES,
        min_frequency=_LEAST_PAIRS,
        initial_alphabet=list(bases),
        limit_alphabet=PREDICTED_BASES,
        special_tokens=[],
        show_progress=show_progress,
    )
    learner.train_from_iterator(sequences, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    return BpeVocabulary.of((left, right) for left, right in learned)
