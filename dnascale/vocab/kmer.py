"""k-mers: runs of A, C, G and T cut into tokens of k bases, or read as one overlapping k-mer a base.

    apart      each run of A, C, G, T is cut from its start; what is left at its end (fewer than k bases) and all other
               letters are single-letter tokens
    overlap    token i is the k-mer that begins at base i; where that would leave the run, it is the letter of base i. Each
               token stands for its first base, so there are as many tokens as bases

No base is lost either way. The k-mer with digits d (the ids of its letters) has the id `first_long` + sum of d[j] * 4^(k-1-j).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from dnascale.errors import UsageError
from dnascale.vocab.character import LETTERS, PREDICTED_BASES, SOFT_MASK_BIT, SPECIAL_TOKENS, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: 4^7 = 16,384 k-mers fit into 15 bits beside the soft mask; 4^8 do not.
LONGEST = 7

#: What the exported tokenizer of overlapping k-mers writes behind a letter that begins one. Private use, so in no text.
_BEGINS = "\ue000"


@dataclass(frozen=True)
class KmerVocabulary(Vocabulary):
    """Letters, special tokens, and all k-mers of A, T, C, G in the order of their letters' ids."""

    k: int
    overlap: bool

    @classmethod
    def of(cls, k: int, overlap: bool) -> "KmerVocabulary":
        """Raises UsageError for a k whose k-mers do not fit into 16 bits with the soft mask."""
        if not 2 <= k <= LONGEST:
            raise UsageError(
                f"k-mers of {k} bases: k must be 2 to {LONGEST}, since 4^k tokens and the soft mask must fit into 16 bits "
                "(kmer:1 is the tokenizer 'character')."
            )
        kmers = tuple(map("".join, product(LETTERS[:PREDICTED_BASES], repeat=k)))
        name = f"kmer:{k}:overlap" if overlap else f"kmer:{k}"
        return cls(name, LETTERS + SPECIAL_TOKENS + kmers, len(LETTERS), k, overlap)

    @property
    def views(self) -> int:
        return self.k if self.overlap else 1

    @property
    def one_base_a_token(self) -> bool:
        return self.overlap

    @property
    def in_words(self) -> str:
        if self.overlap:
            return (
                f"A token is the {self.k}-mer that begins at a base, one for each base; where it would leave a run of A, C, G, T, the "
                "letter of that base"
            )
        return (
            f"Each run of A, C, G, T is cut from its start into tokens of {self.k} bases; what is left at its end, and other "
            "letters, are single-letter tokens"
        )

    def _content(self) -> Any:
        return {"tokens": self.tokens, **self._own_json()}

    def _own_json(self) -> dict[str, Any]:
        return {"kind": "kmer", "k": self.k, "overlap": self.overlap}

    @cached_property
    def complement_table(self) -> np.ndarray:
        table = super().complement_table
        rest = np.arange(PREDICTED_BASES**self.k)
        other = np.zeros_like(rest)
        for _ in range(self.k):  # digits from the last on; a letter's complement has its id with bit 0 changed
            other = other * PREDICTED_BASES + (rest % PREDICTED_BASES ^ 1)
            rest = rest // PREDICTED_BASES
        table[self.first_long :] = self.first_long + other
        return table

    def _stands_for(self, token: str) -> str:
        return token[0] if self.overlap else token

    # --- letters to tokens ---

    def _encode(self, codes: np.ndarray) -> np.ndarray:
        ids, lower = codes & ~np.uint8(SOFT_MASK_BIT), codes >= SOFT_MASK_BIT
        if self.overlap:
            tokens, soft = self._overlapping(ids), lower
        else:
            first, whole = self._cut(ids)
            tokens = ids[first].astype(np.int32)
            long = first[whole]
            tokens[whole] = self._numbers([ids[long + place] for place in range(self.k)])
            soft = lower[first]
            if lower.any():
                soft[whole] = 2 * sum(lower[long + place].astype(np.int8) for place in range(self.k)) > self.k
        return tokens.astype(self.dtype) | soft.astype(self.dtype) * self.dtype.type(self.soft_mask_bit)

    def _encode_beginning(self, codes: np.ndarray) -> tuple[np.ndarray, int]:
        if self.overlap:  # a token is settled when its last base is known
            settled = max(0, len(codes) - self.k + 1)
            return self._encode(codes)[:settled], settled
        settled = self._whole_units(codes, self.k)
        return self._encode(codes[:settled]), settled

    def _numbers(self, digits: list[np.ndarray]) -> np.ndarray:
        """Ids of k-mers, int32 [n], from the ids of their letters, k arrays [n]."""
        number = np.zeros(len(digits[0]), dtype=np.int32)
        for digit in digits:
            number = number * PREDICTED_BASES + digit
        return number + self.first_long

    def _overlapping(self, ids: np.ndarray) -> np.ndarray:
        """The token of each base, int32 [n]."""
        tokens = ids.astype(np.int32)
        count = len(ids) - self.k + 1  # places at which a k-mer may begin
        if count > 0:
            views = [ids[place : place + count] for place in range(self.k)]
            whole = np.logical_and.reduce([view < PREDICTED_BASES for view in views])
            tokens[:count] = np.where(whole, self._numbers(views), tokens[:count])
        return tokens

    def _cut(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the tokens begin, int64 [m], and which are k-mers, bool [m]."""
        other = np.flatnonzero(ids >= PREDICTED_BASES)
        begin, end = np.append(0, other + 1), np.append(other, len(ids))
        kmers = (end - begin) // self.k
        # A run is k-mers, then single letters: those that are left, and the other letter that ended it.
        starts = np.stack([begin, begin + kmers * self.k], axis=1).ravel()
        counts = np.stack([kmers, end - begin - kmers * self.k + 1], axis=1).ravel()
        counts[-1] -= 1
        whole = np.repeat(np.arange(len(counts)) % 2 == 0, counts)
        within = np.arange(len(whole)) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(starts, counts) + within * np.where(whole, self.k, 1), whole

    # --- the same for Hugging Face programs ---

    def _words(self) -> str:
        return rf"[ACGT]{{{self.k}}}|[\s\S]"

    def _backend(self) -> "Tokenizer":
        """Overlapping k-mers are written out by the normalizer, for tokenizers cut a text and repeat nothing of it.

        ACGTA becomes ACG CGT GTA T A in 5 steps, for k = 3 ("." is the mark): A.C.G.TA, Ac.Cg.Gt.TA, Acg.Cgt.Gta.TA, upper case.
        """
        backend = super()._backend()
        if not self.overlap:
            return backend
        from tokenizers import Regex, decoders, normalizers, pre_tokenizers

        letters = LETTERS[:PREDICTED_BASES]
        steps = [normalizers.Replace(_BEGINS, "\ufffd"), *self._upper_case()]
        for letter in letters:
            follows = rf"(?=(?:[ACGT]{_BEGINS}?){{{self.k - 1}}})"
            steps.append(normalizers.Replace(Regex(letter + follows), letter + _BEGINS))
        for ahead in range(1, self.k):
            for letter in letters:
                nth = rf"(?=(?:[^ACGT]*[ACGT]){{{ahead - 1}}}[^ACGT]*{letter})"
                steps.append(normalizers.Replace(Regex(_BEGINS + nth), letter.lower() + _BEGINS))
        for letter in letters:
            steps.append(normalizers.Replace(letter.lower(), letter))
        backend.normalizer = normalizers.Sequence(steps)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(rf"[ACGT]{{{self.k}}}{_BEGINS}|[^{_BEGINS}]"), "isolated"),
                pre_tokenizers.Split(_BEGINS, "removed"),
            ]
        )
        backend.decoder = decoders.Sequence(
            [decoders.Replace(Regex("(?<=^[ACGT])[ACGT]+"), ""), decoders.Fuse()]  # of each token its first base
        )
        return backend
