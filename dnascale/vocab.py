"""The character vocabulary, as a byte table for speed and as a Hugging Face tokenizer for export.

The ids are those of chapter 2 of *Biological language models*: a model trained there reads our shards.
Both forms give the same ids for every string (a property test holds them together).
"""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

#: Bit 7 of a stored token: the base was lower case (soft-masked, a repeat) in the input.
SOFT_MASK_BIT = 0x80

_BOOK_TOKENS = ("A", "T", "C", "G", "N", "U", "i", "R", "Y", "K", "M", "S", "W", "B", "D", "H", "V", "-")
_SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
#: IUPAC complements (NC-IUB 1984); U pairs with A, inosine has no single partner and stays itself.
_COMPLEMENT = dict(zip("ATCGNUiRYKMSWBDHV-", "TAGCNAiYRMKSWVHDB-", strict=True))


@dataclass(frozen=True)
class Vocabulary:
    """Ordered tokens; a token's id is its place. `tokens[:bases]` are single letters of sequence."""

    name: str
    tokens: tuple[str, ...]
    bases: int

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def unk(self) -> int:
        return self.tokens.index("[UNK]")

    @property
    def pad(self) -> int:
        return self.tokens.index("[PAD]")

    @property
    def cls(self) -> int:
        return self.tokens.index("[CLS]")

    @property
    def sep(self) -> int:
        return self.tokens.index("[SEP]")

    @property
    def mask(self) -> int:
        return self.tokens.index("[MASK]")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the name-independent content: two vocabularies agree exactly when this is equal."""
        return hashlib.sha256(json.dumps(self.tokens).encode()).hexdigest()

    @cached_property
    def byte_table(self) -> bytes:
        """256 bytes: `sequence.translate(byte_table)` gives the ids. Lower case equals upper case."""
        table = bytearray([self.unk]) * 256
        for token_id, letter in enumerate(self.tokens[: self.bases]):
            table[ord(letter)] = token_id
        for token_id, letter in enumerate(self.tokens[: self.bases]):
            if letter.isupper():
                lower = ord(letter.lower())
                table[lower] = token_id if table[lower] == self.unk else table[lower]
        return bytes(table)

    @cached_property
    def soft_mask_table(self) -> bytes:
        """256 bytes: 0x80 for the letters that are the lower case of a token, else 0."""
        table = bytearray(256)
        for letter in self.tokens[: self.bases]:
            if letter.isupper() and letter.lower() not in self.tokens:
                table[ord(letter.lower())] = SOFT_MASK_BIT
        return bytes(table)

    @cached_property
    def complement_table(self) -> np.ndarray:
        """uint8 [V]: the id of the complementary base; special tokens map to themselves."""
        table = np.arange(len(self), dtype=np.uint8)
        for token_id, letter in enumerate(self.tokens[: self.bases]):
            table[token_id] = self.tokens.index(_COMPLEMENT[letter])
        return table

    def encode_bases(self, bases: bytes) -> np.ndarray:
        """Sequence letters (bytes of length n) to ids, uint8 [n]. Letters outside the vocabulary become [UNK]."""
        return np.frombuffer(bases.translate(self.byte_table), dtype=np.uint8)

    def soft_mask(self, bases: bytes) -> np.ndarray:
        """uint8 [n]: `SOFT_MASK_BIT` where the letter is lower case, else 0."""
        return np.frombuffer(bases.translate(self.soft_mask_table), dtype=np.uint8)

    def encode(self, text: str) -> list[int]:
        """Any string to ids, as the exported tokenizer does: special tokens by name, else one id a character."""
        ids: list[int] = []
        for piece in re.split(f"({'|'.join(map(re.escape, _SPECIAL_TOKENS))})", text):
            if piece in _SPECIAL_TOKENS:
                ids.append(self.tokens.index(piece))
            else:
                ids.extend(piece.encode("ascii", "replace").translate(self.byte_table))
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Ids of any integer dtype [n] to text; the soft-mask bit, if set, gives lower case."""
        return "".join(
            self.tokens[i & ~SOFT_MASK_BIT].lower() if i & SOFT_MASK_BIT else self.tokens[i] for i in ids.tolist()
        )

    def tokenizer(self, model_max_length: int) -> "PreTrainedTokenizerFast":
        """The same vocabulary as a Hugging Face tokenizer that works where dnascale is not installed."""
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(self.tokens)}, unk_token="[UNK]"))
        backend.normalizer = normalizers.Sequence(
            [
                normalizers.Replace(letter.lower(), letter)
                for letter in self.tokens[: self.bases]
                if letter.isupper() and letter.lower() not in self.tokens
            ]
        )
        # [\s\S] and not ".": a line end is a character too.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            unk_token="[UNK]",
            pad_token="[PAD]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            model_max_length=model_max_length,
        )


CHARACTER = Vocabulary("character", _BOOK_TOKENS + _SPECIAL_TOKENS, bases=len(_BOOK_TOKENS))

#: The four letters that are masked and predicted: ids 0 to 3 (A, T, C, G).
PREDICTED_BASES = 4
