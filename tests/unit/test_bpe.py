"""Learned tokens: against byte-pair encoding written out by hand, and against the exported Hugging Face tokenizer."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.errors import DataError, UsageError
from dnascale.vocab import CHARACTER, load_vocabulary, vocabulary_from_json
from dnascale.vocab.bpe import WORD, BpeVocabulary, learn

SIZE = 120
records = st.lists(
    st.one_of(st.text("ACGTacgt", max_size=40), st.sampled_from([*"NnRyi-X", "ACACACACAC", "gattaca" * 100])),
    max_size=6,
).map("".join)
texts = st.lists(
    st.one_of(
        st.text("ACGTacgt", max_size=30), st.sampled_from(["[MASK]", "[SEP]", "\n", "é", "N", "x", "TATA" * 150])
    ),
    max_size=6,
).map("".join)


def sequences() -> list[str]:
    """With pieces that come again."""
    rng = np.random.default_rng(0)
    motifs = ["GATTACA", "TATAAA", "CG", "ACGTN", "CAG", "T"]
    return ["".join(rng.choice(motifs, 60)) for _ in range(40)]


@pytest.fixture(scope="module")
def vocabulary() -> BpeVocabulary:
    return learn(sequences(), SIZE)


def codes_of(text: str) -> np.ndarray:
    return CHARACTER.encode_bases(text.encode()) | CHARACTER.soft_mask(text.encode())


def naive_words(text: str) -> list[str]:
    words, word = [], ""
    for letter in text:
        if letter in "ACGT" and len(word) < WORD and (not word or word[-1] in "ACGT"):
            word += letter
        else:
            words += [word] if word else []
            word = letter
    return words + ([word] if word else [])


def naive_bpe(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """The earliest merge that applies anywhere, at its leftmost place, again and again."""
    parts = list(word)
    while True:
        ranks = [merges.index(pair) if pair in merges else len(merges) for pair in itertools.pairwise(parts)]
        if not ranks or min(ranks) == len(merges):
            return parts
        at = ranks.index(min(ranks))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_every_merge_joins_a_pair_that_is_most_frequent_at_its_turn(vocabulary: BpeVocabulary) -> None:
    words = [list(word) for sequence in sequences() for word in naive_words(sequence) if len(word) > 1]
    for left, right in vocabulary.merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word in words:
            pairs.update(itertools.pairwise(word))
        # Of a run of one letter, pairs overlap: implementations count them differently by a few.
        assert pairs[left, right] >= 0.9 * max(pairs.values())
        for word in words:
            at = 0
            while at < len(word) - 1:
                if (word[at], word[at + 1]) == (left, right):
                    word[at : at + 2] = [left + right]
                at += 1


@given(text=records)
@settings(max_examples=60, deadline=None)
def test_tokens_are_those_of_merging_by_hand(vocabulary: Any, text: str) -> None:
    upper = "".join(letter if letter == "i" else letter.upper() for letter in text)
    expected = [token for word in naive_words(upper) for token in naive_bpe(word, list(vocabulary.merges))]
    found = vocabulary.encode_codes(codes_of(text))
    names = [vocabulary.tokens[i] for i in (found & (vocabulary.soft_mask_bit - 1)).tolist()]
    assert names == [token if token != "X" else "[UNK]" for token in expected]


@given(text=records)
@settings(max_examples=60, deadline=None)
def test_no_base_is_lost_and_the_soft_mask_is_that_of_most_bases(vocabulary: Any, text: str) -> None:
    codes = codes_of(text)
    tokens = vocabulary.encode_codes(codes)
    ids = tokens & (vocabulary.soft_mask_bit - 1)
    np.testing.assert_array_equal(vocabulary.decode_codes(tokens) & 0x7F, codes & 0x7F)
    sizes = vocabulary.bases_per_token[ids]
    assert sizes.sum() == len(text)
    lower = np.array([code > 0x7F for code in codes.tolist()], dtype=int)
    ends = np.cumsum(sizes)
    for token, size, end in zip(tokens.tolist(), sizes.tolist(), ends.tolist(), strict=True):
        assert (token & vocabulary.soft_mask_bit > 0) == (2 * lower[end - size : end].sum() > size)


@given(text=records, cuts=st.lists(st.integers(0, 3000), max_size=5))
@settings(max_examples=60, deadline=None)
def test_a_record_in_pieces_has_the_tokens_of_the_whole(vocabulary: Any, text: str, cuts: list[int]) -> None:
    codes = codes_of(text * 4)
    places = sorted(min(cut, len(codes)) for cut in cuts)
    pieces = [codes[a:b] for a, b in zip([0, *places], [*places, len(codes)], strict=True)]
    joined = np.concatenate(list(vocabulary.encode_pieces(pieces)))
    np.testing.assert_array_equal(joined, vocabulary.encode_codes(codes))


@pytest.fixture(scope="module")
def tokenizers(vocabulary: BpeVocabulary, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    made = vocabulary.tokenizer(model_max_length=100_000)
    made.save_pretrained(folder)
    return [made, AutoTokenizer.from_pretrained(folder)]


@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_exported_tokenizer_and_reloaded_tokenizer_agree_on_every_text(
    vocabulary: Any, tokenizers: list[Any], text: str
) -> None:
    expected = vocabulary.encode(text)
    for tokenizer in tokenizers:
        assert tokenizer(text)["input_ids"] == expected
        upper = text.upper()
        if set(upper.replace("[MASK]", "")) <= set("ACGTN"):
            assert tokenizer.decode(expected) == upper == vocabulary.decode(np.array(expected, dtype=np.int64))


def test_tokens_are_letters_special_tokens_and_then_what_was_learned(vocabulary: BpeVocabulary) -> None:
    assert len(vocabulary) == SIZE
    assert vocabulary.name == f"bpe:{SIZE}"
    assert vocabulary.tokens[: len(CHARACTER)] == CHARACTER.tokens
    assert "GATTACA" in vocabulary.tokens
    assert len(set(vocabulary.tokens)) == SIZE
    assert all(set(token) <= set("ACGT") for token in vocabulary.tokens[len(CHARACTER) :])
    assert vocabulary.dtype == np.uint8
    assert learn(sequences(), 300).dtype == np.uint16


LEARN = "import sys, test_bpe; print(test_bpe.learn(test_bpe.sequences(), test_bpe.SIZE).digest)"


def test_the_same_sequences_give_the_same_tokens_in_another_process_on_any_number_of_threads(
    vocabulary: BpeVocabulary,
) -> None:
    for threads in ("1", "2"):
        env = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads}
        done = subprocess.run([sys.executable, "-c", LEARN], capture_output=True, text=True, env=env, cwd=Path(__file__).parent)  # fmt: skip
        assert done.stdout.strip() == vocabulary.digest, done.stderr


def test_it_comes_back_from_json_and_from_a_pickle_and_is_told_from_others(vocabulary: BpeVocabulary) -> None:
    vocabulary.encode("ACGT")  # so that what is made once is there
    body = json.loads(json.dumps(vocabulary.to_json()))
    assert vocabulary_from_json(body, "here") == vocabulary
    again = pickle.loads(pickle.dumps(vocabulary))
    assert again == vocabulary
    assert again.encode("GATTACANNacgt") == vocabulary.encode("GATTACANNacgt")
    body["merges"] = body["merges"][:-2] + body["merges"][:-3:-1]
    with pytest.raises(DataError, match="here: the tokenizer does not match its own digest"):
        vocabulary_from_json(body, "here")


def test_a_folder_that_holds_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no tokenizer folder"):
        load_vocabulary(str(tmp_path))
    (tmp_path / "vocabulary.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        load_vocabulary(str(tmp_path))


def test_the_other_strand_of_learned_tokens_is_refused(vocabulary: BpeVocabulary) -> None:
    from dnascale.data.masking import Masking

    with pytest.raises(UsageError, match=r"reverse_complement=true cannot be had with the tokenizer bpe:120"):
        Masking(vocabulary, 0.2, 0.8, 0.1, True, 1.0)
