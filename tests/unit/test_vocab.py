"""The vocabulary: the book's ids, and the byte table against the exported Hugging Face tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnascale.vocab import CHARACTER, PREDICTED_BASES, SOFT_MASK_BIT, Vocabulary

BOOK_IDS = {
    "A": 0, "T": 1, "C": 2, "G": 3, "N": 4, "U": 5, "i": 6, "R": 7, "Y": 8, "K": 9, "M": 10, "S": 11,
    "W": 12, "B": 13, "D": 14, "H": 15, "V": 16, "-": 17,
    "[UNK]": 18, "[PAD]": 19, "[CLS]": 20, "[SEP]": 21, "[MASK]": 22,
}  # fmt: skip
LETTERS = [token for token in BOOK_IDS if len(token) == 1]
#: What each IUPAC code stands for (NC-IUB 1984).
IUPAC = {
    "A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "K": "GT", "M": "AC", "S": "CG", "W": "AT",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip

names = [name for name in BOOK_IDS if len(name) > 1]
pieces = st.sampled_from(
    [*"ACGTUNRYKMSWBDHVi-acgtunrykmswbdhvIxX[]* \t\n\r\0é∂ß", *names, *map(str.lower, names), "[MAS", "SK]", "[ MASK]"]
)
strings = st.one_of(st.text(), st.lists(pieces, max_size=40).map("".join))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The exported tokenizer as made, and as another program loads it."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    made = CHARACTER.tokenizer(model_max_length=512)
    made.save_pretrained(folder)
    return [made, AutoTokenizer.from_pretrained(folder)]


def naive_encode(text: str) -> list[int]:
    """One token at a time by the book's table: a special name if one starts here, else a character."""
    ids, at = [], 0
    while at < len(text):
        special = next((name for name in names if text.startswith(name, at)), None)
        token = special or text[at]
        if token not in BOOK_IDS and token.isascii() and token.upper() in BOOK_IDS:
            token = token.upper()
        ids.append(BOOK_IDS.get(token, BOOK_IDS["[UNK]"]))
        at += len(token) if special else 1
    return ids


def test_ids_are_those_of_the_book() -> None:
    assert {token: i for i, token in enumerate(CHARACTER.tokens)} == BOOK_IDS
    assert len(CHARACTER) == 23
    assert CHARACTER.bases == 18
    assert (CHARACTER.unk, CHARACTER.pad, CHARACTER.cls, CHARACTER.sep, CHARACTER.mask) == (18, 19, 20, 21, 22)
    assert [CHARACTER.tokens[i] for i in range(PREDICTED_BASES)] == ["A", "T", "C", "G"]


@given(text=strings)
@example(text="[unk]acgt[UNK]")
@example(text="\n\nA\r\n\n")
@example(text="[MASK][MASK]\nA [SEP]i I")
@settings(max_examples=300, deadline=None)
def test_fast_encoding_exported_tokenizer_and_reloaded_tokenizer_agree_on_every_string(
    tokenizers: list[Any], text: str
) -> None:
    expected = naive_encode(text)
    assert CHARACTER.encode(text) == expected
    for tokenizer in tokenizers:
        assert tokenizer(text)["input_ids"] == expected


@given(data=st.binary(max_size=200))
def test_encoding_bases_agrees_with_encoding_text_on_ascii(data: bytes) -> None:
    text = bytes(byte & 0x7F for byte in data if byte & 0x7F != ord("["))
    assert CHARACTER.encode_bases(text).tolist() == CHARACTER.encode(text.decode()) == naive_encode(text.decode())
    assert (CHARACTER.encode_bases(bytes(byte | 0x80 for byte in data)) == CHARACTER.unk).all()


def test_exported_tokenizer_states_its_special_tokens_length_and_decodes(tokenizers: list[Any]) -> None:
    for tokenizer in tokenizers:
        assert tokenizer.model_max_length == 512
        assert len(tokenizer) == 23
        assert tokenizer.mask_token_id == CHARACTER.mask
        assert tokenizer.pad_token_id == CHARACTER.pad
        assert tokenizer.decode(tokenizer("acgtN[MASK]-")["input_ids"]) == "ACGTN[MASK]-"
        batch = tokenizer(["ACG", "A"], padding=True)
        assert batch["input_ids"] == [[0, 2, 3], [0, 19, 19]]
        assert batch["attention_mask"] == [[1, 1, 1], [1, 0, 0]]


def test_lower_case_has_the_ids_of_upper_case_except_inosine() -> None:
    for letter in LETTERS:
        expected = BOOK_IDS[letter]
        assert CHARACTER.encode(letter) == [expected]
        assert CHARACTER.encode(letter.lower()) == [expected]
    assert CHARACTER.encode("I") == [CHARACTER.unk]  # isoleucine, and not inosine


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_lower_case_is_remembered_as_bit_7_and_comes_back_when_decoded(dtype: Any) -> None:
    text = b"ACgtNnUuRrYyKkMmSsWwBbDdHhVv-i"
    stored = CHARACTER.encode_bases(text) | CHARACTER.soft_mask(text)
    assert stored.dtype == np.uint8
    assert CHARACTER.decode(stored.astype(dtype)) == text.decode()
    lower = [chr(byte).islower() and chr(byte) != "i" for byte in text]
    assert ((stored & SOFT_MASK_BIT) != 0).tolist() == lower
    assert (stored & 0x7F).tolist() == naive_encode(text.decode())
    assert CHARACTER.decode(CHARACTER.encode_bases(text).astype(dtype)) == text.decode().upper().replace("I", "i")


def test_complement_of_a_code_stands_for_the_complements_of_its_bases() -> None:
    table = CHARACTER.complement_table
    partner = dict(zip("ACGT", "TGCA", strict=True))
    code_of = {frozenset(bases): code for code, bases in IUPAC.items()}
    for code, bases in IUPAC.items():
        expected = code_of[frozenset(partner[base] for base in bases)]
        assert CHARACTER.tokens[table[BOOK_IDS[code]]] == expected
    coded = [BOOK_IDS[code] for code in IUPAC]
    np.testing.assert_array_equal(table[table[coded]], coded)


def test_complement_of_uracil_is_adenine_and_other_tokens_stay() -> None:
    table = CHARACTER.complement_table
    assert table[BOOK_IDS["U"]] == BOOK_IDS["A"]
    for token in ["i", "-", *names]:
        assert table[BOOK_IDS[token]] == BOOK_IDS[token]


def test_digest_depends_on_the_tokens_and_their_order_alone() -> None:
    swapped = ("T", "A", *CHARACTER.tokens[2:])
    assert Vocabulary("other name", CHARACTER.tokens, CHARACTER.bases).digest == CHARACTER.digest
    assert Vocabulary("character", swapped, CHARACTER.bases).digest != CHARACTER.digest
