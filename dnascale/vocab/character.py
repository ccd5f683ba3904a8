"""Letters: the character vocabulary, and what every other vocabulary has in common with it.

The ids are those of chapter 2 of *Biological language models*: a model trained there reads our shards. Other vocabularies
keep them, letters and special tokens, and put their own tokens behind.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

#: Bit 7 of a character id: the base was lower case (soft-masked, a repeat) in the input.
SOFT_MASK_BIT = 0x80
#: The four letters that are masked and predicted: ids 0 to 3 (A, T, C, G).
PREDICTED_BASES = 4

LETTERS = ("A", "T", "C", "G", "N", "U", "i", "R", "Y", "K", "M", "S", "W", "B", "D", "H", "V", "-")
SPECIAL_TOKENS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")
#: IUPAC complements (NC-IUB 1984); U pairs with A, inosine has no single partner and stays itself.
_COMPLEMENT = dict(zip("ATCGNUiRYKMSWBDHV-", "TAGCNAiYRMKSWVHDB-", strict=True))

#: Letters tokenised in one go, which bounds the memory of what is computed on the way.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Vocabulary:
    """Ordered tokens; a token's id is its place: single letters first, then the special tokens, then longer tokens.

    This class is the character vocabulary: one token, one base. Others differ in what `_encode` and the properties below say.
    """

    name: str
    tokens: tuple[str, ...]
    bases: int  # how many of the first tokens are single letters of sequence

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def unk(self) -> int:
        return self.bases + SPECIAL_TOKENS.index("[UNK]")

    @property
    def pad(self) -> int:
        return self.bases + SPECIAL_TOKENS.index("[PAD]")

    @property
    def cls(self) -> int:
        return self.bases + SPECIAL_TOKENS.index("[CLS]")

    @property
    def sep(self) -> int:
        return self.bases + SPECIAL_TOKENS.index("[SEP]")

    @property
    def mask(self) -> int:
        return self.bases + SPECIAL_TOKENS.index("[MASK]")

    # --- what a token is ---

    @property
    def first_long(self) -> int:
        """Id of the first token of several letters; the number of tokens when there is none."""
        return self.bases + len(SPECIAL_TOKENS)

    @property
    def predictable(self) -> int:
        """How many tokens can be masked and predicted: A, T, C and G, and all of several letters, which hold only these."""
        return PREDICTED_BASES + len(self) - self.first_long

    @property
    def views(self) -> int:
        """In how many tokens a base is seen: k with overlapping k-mers, else 1."""
        return 1

    @property
    def has_other_strand(self) -> bool:
        """Whether the tokens of the other strand follow from these tokens alone."""
        return True

    @property
    def in_words(self) -> str:
        """What a token is, for people."""
        return "One token is one base"

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """How a token is stored, with the soft mask in its top bit: uint8 up to 128 tokens, else uint16 (little-endian)."""
        return np.dtype(np.uint8) if len(self) <= SOFT_MASK_BIT else np.dtype("<u2")

    @property
    def soft_mask_bit(self) -> int:
        """The top bit of a stored token: most of its bases were lower case."""
        return SOFT_MASK_BIT if len(self) <= SOFT_MASK_BIT else SOFT_MASK_BIT << 8

    @cached_property
    def bases_per_token(self) -> np.ndarray:
        """int64 [V]: how many bases of a record each token stands for. They add up to the length of the record."""
        return np.array([len(spelled) for spelled in self._spelled], dtype=np.int64) * ~self._is_mark

    @property
    def one_base_a_token(self) -> bool:
        """Whether there are as many tokens as bases."""
        return len(self) == self.first_long

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the name-independent content: two vocabularies agree exactly when this is equal."""
        return hashlib.sha256(json.dumps(self._content()).encode()).hexdigest()

    def _content(self) -> Any:
        """What decides which tokens a sequence has."""
        return self.tokens

    def to_json(self) -> dict[str, Any]:
        """For dataset.json; `vocabulary_from_json` is the way back."""
        return {"name": self.name, "tokens": list(self.tokens), "bases": self.bases} | self._own_json() | {
            "sha256": self.digest
        }  # fmt: skip

    def _own_json(self) -> dict[str, Any]:
        """What a kind of vocabulary has besides tokens."""
        return {}

    def letter_counts(self, counts: np.ndarray) -> np.ndarray:
        """int64 [bases]: how often each letter stands in a text, from how often each token does, int64 [V]."""
        letters = np.zeros(self.bases, dtype=np.int64)
        for token in np.flatnonzero(counts[: len(self._spelled)]):
            if not self._is_mark[token]:
                np.add.at(letters, self._spelled[token], counts[token])
        return letters

    # --- letters ---

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
        """[V] of the tokens' dtype: the id of the same token on the other strand; special tokens map to themselves."""
        table = np.arange(len(self), dtype=self.dtype)
        for token_id, letter in enumerate(self.tokens[: self.bases]):
            table[token_id] = self.tokens.index(_COMPLEMENT[letter])
        return table

    def encode_bases(self, bases: bytes) -> np.ndarray:
        """Sequence letters (bytes of length n) to character ids, uint8 [n]. Letters outside the vocabulary become [UNK]."""
        return np.frombuffer(bases.translate(self.byte_table), dtype=np.uint8)

    def soft_mask(self, bases: bytes) -> np.ndarray:
        """uint8 [n]: `SOFT_MASK_BIT` where the letter is lower case, else 0."""
        return np.frombuffer(bases.translate(self.soft_mask_table), dtype=np.uint8)

    def letters(self, codes: np.ndarray) -> str:
        """Character ids uint8 [n] to letters, in upper case whatever their bit 7; what has no letter is `?`."""
        return self._letter_bytes[codes & ~np.uint8(SOFT_MASK_BIT)].tobytes().decode()

    @cached_property
    def _letter_bytes(self) -> np.ndarray:
        """uint8 [128], by character id."""
        table = np.full(1 << 7, ord("?"), dtype=np.uint8)
        table[: self.bases] = [ord(letter) for letter in self.tokens[: self.bases]]
        return table

    # --- letters to tokens and back ---

    def encode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Character ids of a whole record, uint8 [n], bit 7 = lower case -> tokens [m] of `dtype`, top bit = soft mask."""
        if len(codes) <= _CHUNK:
            return self._encode(codes)
        return np.concatenate(list(self.encode_pieces(codes[at : at + _CHUNK] for at in range(0, len(codes), _CHUNK))))

    def encode_pieces(self, pieces: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same for a record that comes in pieces: their tokens, joined, are those of the whole record."""
        rest = np.empty(0, dtype=np.uint8)
        for piece in pieces:
            codes = np.concatenate([rest, piece]) if len(rest) else piece
            tokens, settled = self._encode_beginning(codes)
            rest = codes[settled:]
            yield tokens
        yield self._encode(rest)

    def _encode(self, codes: np.ndarray) -> np.ndarray:
        return codes

    def _encode_beginning(self, codes: np.ndarray) -> tuple[np.ndarray, int]:
        """Tokens that stay the same whatever follows, and how many letters they stand for."""
        return codes, len(codes)

    @staticmethod
    def _whole_units(codes: np.ndarray, unit: int) -> int:
        """How many letters are settled where each run of A, C, G, T is cut from its start into parts of `unit` bases."""
        other = np.flatnonzero(codes & ~np.uint8(SOFT_MASK_BIT) >= PREDICTED_BASES)
        run = int(other[-1]) + 1 if len(other) else 0
        return run + (len(codes) - run) // unit * unit

    @cached_property
    def _spelled(self) -> list[np.ndarray]:
        """Of each token the character ids of the bases it stands for; a special token stands for itself."""
        return [np.array([token_id], dtype=np.uint8) for token_id in range(self.first_long)] + [
            self.encode_bases(self._stands_for(token).encode()) for token in self.tokens[self.first_long :]
        ]

    def _stands_for(self, token: str) -> str:
        """The bases of a token of several letters that no other token stands for."""
        return token

    @cached_property
    def _is_mark(self) -> np.ndarray:
        """bool [V]: special tokens, which stand for no base. [UNK] stands for one that has no letter here."""
        return np.array([token in SPECIAL_TOKENS and token != "[UNK]" for token in self.tokens])

    @cached_property
    def _spelling(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`_spelled` joined (uint8), and where each token's part begins and how long it is (int64 [V])."""
        lengths = np.array([len(spelled) for spelled in self._spelled], dtype=np.int64)
        return np.concatenate(self._spelled), np.cumsum(lengths) - lengths, lengths

    def decode_codes(self, tokens: np.ndarray) -> np.ndarray:
        """Stored tokens [m] -> character ids uint8 [n], bit 7 = lower case. Special tokens stay, one id each."""
        if self.first_long == len(self) and self.soft_mask_bit == SOFT_MASK_BIT:  # each is a letter
            return tokens.astype(np.uint8)
        ids = tokens & (self.soft_mask_bit - 1)
        soft = ((tokens & self.soft_mask_bit) != 0).astype(np.uint8) * SOFT_MASK_BIT
        letters, begin, lengths = self._spelling
        count = lengths[ids]
        first = np.repeat(begin[ids] - (np.cumsum(count) - count), count)
        decoded: np.ndarray = letters[first + np.arange(len(first))] | np.repeat(soft, count)
        return decoded

    # --- text ---

    def encode(self, text: str) -> list[int]:
        """Any string to ids, as the exported tokenizer does: special tokens by name, the rest as sequence in upper case."""
        ids: list[int] = []
        for piece in re.split(f"({'|'.join(map(re.escape, SPECIAL_TOKENS))})", text):
            if piece in SPECIAL_TOKENS:
                ids.append(self.tokens.index(piece))
            else:
                ids.extend(self.encode_codes(self.encode_bases(piece.encode("ascii", "replace"))).tolist())
        return ids

    def decode(self, ids: np.ndarray) -> str:
        """Ids of any integer dtype [n] to text; the soft-mask bit, if set, gives lower case."""
        codes = self.decode_codes(ids).tolist()
        letters = ((self.tokens[code & ~SOFT_MASK_BIT], code & SOFT_MASK_BIT) for code in codes)
        return "".join(letter.lower() if soft else letter for letter, soft in letters)

    def tokenizer(self, model_max_length: int | None) -> "PreTrainedTokenizerFast":
        """The same vocabulary as a Hugging Face tokenizer that works where dnascale is not installed. None: any length."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(
            tokenizer_object=self._backend(),
            unk_token="[UNK]",
            pad_token="[PAD]",
            cls_token="[CLS]",
            sep_token="[SEP]",
            mask_token="[MASK]",
            model_max_length=model_max_length,
        )

    def _backend(self) -> "Tokenizer":
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

        backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(self.tokens)}, unk_token="[UNK]"))
        backend.normalizer = normalizers.Sequence(self._upper_case())
        # [\s\S] and not ".": a line end is a character too.
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(self._words()), "isolated")
        backend.decoder = decoders.Fuse()
        return backend

    def _upper_case(self) -> list[Any]:
        """Normalizers of a Hugging Face tokenizer that write letters in upper case."""
        from tokenizers import normalizers

        return [
            normalizers.Replace(letter.lower(), letter)
            for letter in self.tokens[: self.bases]
            if letter.isupper() and letter.lower() not in self.tokens
        ]

    def _words(self) -> str:
        """Regular expression whose matches cut a text, from left to right, into what the model of the tokenizer is given."""
        return r"[\s\S]"


CHARACTER = Vocabulary("character", LETTERS + SPECIAL_TOKENS, bases=len(LETTERS))
