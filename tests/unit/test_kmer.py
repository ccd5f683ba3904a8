"""k-mer vocabularies: against a naive cutting of strings, and against the exported Hugging Face tokenizer."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dnascale.errors import DataError, UsageError
from dnascale.vocab import CHARACTER, Vocabulary, load_vocabulary, vocabulary_from_json

SPECS = ["kmer:2", "kmer:3", "kmer:6", "kmer:2:overlap", "kmer:3:overlap", "kmer:6:overlap"]
#: Mostly runs of bases, of every length around k.
records = st.lists(
    st.one_of(st.text("ACGTacgt", max_size=15), st.sampled_from([*"NnRyi-X", "ACGTACGTACGT", "acgtAC"])), max_size=8
).map("".join)
texts = st.lists(
    st.one_of(
        st.text("ACGTacgt", max_size=12), st.sampled_from(["[MASK]", "[SEP]", "\n", ".", "é", "\ue000", "N", "x"])
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module", params=SPECS)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return load_vocabulary(request.param)


def codes_of(text: str) -> np.ndarray:
    return CHARACTER.encode_bases(text.encode()) | CHARACTER.soft_mask(text.encode())


def naive_tokens(text: str, k: int, overlap: bool) -> list[tuple[str, bool]]:
    """(token, soft-masked) of a record, cut by looking at one place after the other."""
    out, at = [], 0
    while at < len(text):
        kmer = text[at : at + k].upper()
        is_kmer = len(kmer) == k and set(kmer) <= set("ACGT")
        letter = text[at] if text[at] == "i" else text[at].upper()
        letter = letter if letter in CHARACTER.tokens[: CHARACTER.bases] else "[UNK]"
        spelled = text[at : at + k] if is_kmer and not overlap else text[at]
        lower = sum(c.islower() and c not in "ix" for c in spelled)
        out.append((kmer if is_kmer else letter, 2 * lower > len(spelled)))
        at += len(spelled)
    return out


@given(text=records)
@example(text="")
@example(text="ACGTACGTACGTA")
@settings(max_examples=150, deadline=None)
def test_tokens_are_those_of_a_naive_cutting(vocabulary: Any, text: str) -> None:
    tokens = vocabulary.encode_codes(codes_of(text))
    expected = naive_tokens(text, vocabulary.k, vocabulary.overlap)
    assert tokens.dtype == vocabulary.dtype
    ids, bit = tokens.astype(int), vocabulary.soft_mask_bit
    assert [(vocabulary.tokens[i & ~bit], i & bit > 0) for i in ids.tolist()] == expected


@given(text=records)
@settings(max_examples=150, deadline=None)
def test_no_base_is_lost(vocabulary: Any, text: str) -> None:
    codes = codes_of(text)
    tokens = vocabulary.encode_codes(codes)
    back = vocabulary.decode_codes(tokens)
    np.testing.assert_array_equal(back & 0x7F, codes & 0x7F)
    assert vocabulary.bases_per_token[tokens & (vocabulary.soft_mask_bit - 1)].sum() == len(text)
    if vocabulary.overlap:  # a token a base, so the case of each base comes back too
        np.testing.assert_array_equal(back, codes)
        assert len(tokens) == len(text)
    separated = np.append(tokens, vocabulary.dtype.type(vocabulary.sep))
    assert vocabulary.decode_codes(separated)[-1] == CHARACTER.sep
    assert vocabulary.bases_per_token[vocabulary.sep] == 0


@given(text=records, cuts=st.lists(st.integers(0, 200), max_size=5))
@settings(max_examples=150, deadline=None)
def test_a_record_in_pieces_has_the_tokens_of_the_whole(vocabulary: Any, text: str, cuts: list[int]) -> None:
    codes = codes_of(text * 2)
    places = sorted(min(cut, len(codes)) for cut in cuts)
    pieces = [codes[a:b] for a, b in zip([0, *places], [*places, len(codes)], strict=True)]
    joined = np.concatenate(list(vocabulary.encode_pieces(pieces)))
    np.testing.assert_array_equal(joined, vocabulary.encode_codes(codes))


@pytest.fixture(scope="module")
def tokenizers(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The exported tokenizer as made, and as another program loads it."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    made = vocabulary.tokenizer(model_max_length=512)
    made.save_pretrained(folder)
    return [made, AutoTokenizer.from_pretrained(folder)]


@given(text=texts)
@example(text="ACGTACGTAC[MASK]acgtacgtacNACGTACGTAC")
@settings(max_examples=150, deadline=None)
def test_exported_tokenizer_and_reloaded_tokenizer_agree_on_every_text(
    vocabulary: Any, tokenizers: list[Any], text: str
) -> None:
    expected = vocabulary.encode(text)
    for tokenizer in tokenizers:
        assert tokenizer(text)["input_ids"] == expected


def test_exported_tokenizer_decodes_to_the_bases(vocabulary: Any, tokenizers: list[Any]) -> None:
    text = "ACGTTGCATTGACANGATTACA[MASK]CATGT"
    for tokenizer in tokenizers:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        assert tokenizer.mask_token_id == vocabulary.mask == CHARACTER.mask
    assert vocabulary.decode(np.array(vocabulary.encode(text))) == text


def test_a_long_record_has_the_tokens_of_its_parts() -> None:
    """Long records are tokenised a part at a time."""
    letters = np.frombuffer("".join(random.Random(3).choices("ACGT", k=(1 << 20) + 100_003)).encode(), dtype=np.uint8)
    letters = letters.copy()
    letters[1_048_000] = ord("N")
    codes = CHARACTER.encode_bases(letters.tobytes())
    for spec in ("kmer:6", "kmer:6:overlap"):
        vocabulary = load_vocabulary(spec)
        np.testing.assert_array_equal(vocabulary.encode_codes(codes), vocabulary._encode(codes))


def test_complement_of_a_kmer_is_read_from_the_other_end(vocabulary: Any) -> None:
    other = str.maketrans("ACGT", "TGCA")
    table = vocabulary.complement_table
    for token_id in range(vocabulary.first_long, len(vocabulary), 7):
        assert vocabulary.tokens[table[token_id]] == vocabulary.tokens[token_id].translate(other)[::-1]
    np.testing.assert_array_equal(table[: CHARACTER.bases + 5], CHARACTER.complement_table)


def test_letters_and_special_tokens_keep_their_ids_and_small_vocabularies_stay_bytes(vocabulary: Any) -> None:
    assert vocabulary.tokens[: len(CHARACTER)] == CHARACTER.tokens
    assert len(vocabulary) == len(CHARACTER) + 4**vocabulary.k
    assert vocabulary.dtype == (np.uint8 if vocabulary.k <= 3 else np.uint16)
    assert vocabulary.predictable == 4 + 4**vocabulary.k
    assert len(vocabulary) <= vocabulary.soft_mask_bit
    first = vocabulary.first_long
    for digits in (0, 1, 4**vocabulary.k - 1):
        spelled = [digits // 4**place % 4 for place in reversed(range(vocabulary.k))]
        assert vocabulary.tokens[first + digits] == "".join(CHARACTER.tokens[d] for d in spelled)


def test_overlapping_and_apart_are_told_from_each_other_and_come_back_from_json() -> None:
    read = {spec: load_vocabulary(spec) for spec in [*SPECS, "character", "kmer:7"]}
    assert len({vocabulary.digest for vocabulary in read.values()}) == len(read)
    for spec, vocabulary in read.items():
        assert vocabulary.name == spec
        assert vocabulary_from_json(vocabulary.to_json(), "here") == vocabulary
    edited = read["kmer:3"].to_json() | {"overlap": True}
    with pytest.raises(DataError, match="here: the tokenizer does not match its own digest"):
        vocabulary_from_json(edited, "here")
    with pytest.raises(DataError, match="upgrade dnascale"):
        vocabulary_from_json(edited | {"kind": "wordpiece"}, "here")


@pytest.mark.parametrize("spec", ["kmer:8", "kmer:1", "kmer:0:overlap"])
def test_kmers_that_do_not_fit_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="k must be 2 to 7"):
        load_vocabulary(spec)


@pytest.mark.parametrize("spec", ["kmer", "kmer:", "kmer:6:overlapping", "kmer:-1", "characters"])
def test_unknown_tokenizers_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="kmer:K"):
        load_vocabulary(spec)
