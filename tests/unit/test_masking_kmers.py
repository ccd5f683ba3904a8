"""Masking of k-mers: nothing shows a hidden base, replaced bases are replaced in all tokens, strands are those of the text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data.masking import Masking, anchor_share, mask_group, reverse_complement
from dnascale.vocab import CHARACTER, Vocabulary, load_vocabulary

APART = ["kmer:3", "kmer:6"]
OVERLAP = ["kmer:2:overlap", "kmer:3:overlap", "kmer:6:overlap"]
LENGTH = 96


def recipe(vocabulary: Vocabulary, **changes: Any) -> Masking:
    values = {"rate": 0.2, "replace_with_mask": 0.8, "replace_with_random": 0.1}
    return Masking(vocabulary, **(values | {"reverse_complement": False, "repeat_weight": 1.0} | changes))


def texts(count: int, seed: int = 0) -> list[str]:
    """Records of mixed letters and case."""
    rng = np.random.default_rng(seed)
    letters = list("ACGTacgtNR")
    weights = [0.16] * 4 + [0.085] * 4 + [0.01] * 2
    return ["".join(rng.choice(letters, int(rng.integers(1, 60)), p=weights)) for _ in range(count)]


def encoded(vocabulary: Vocabulary, text: str) -> np.ndarray:
    data = text.encode()
    return vocabulary.encode_codes(CHARACTER.encode_bases(data) | CHARACTER.soft_mask(data))


def windows(vocabulary: Vocabulary, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of whole records, each with a separator behind it, padded with separators: uint8 or uint16 [n, LENGTH]."""
    separator = np.array([vocabulary.sep], dtype=vocabulary.dtype)
    rows = []
    for number in range(count):
        row = np.concatenate([np.append(encoded(vocabulary, t), separator) for t in texts(9, number)])[:LENGTH]
        end = int(np.flatnonzero(row & (vocabulary.soft_mask_bit - 1) == vocabulary.sep)[-1])
        row[end:] = vocabulary.sep
        rows.append(np.concatenate([row, np.repeat(separator, LENGTH - len(row))]))
    return torch.from_numpy(np.stack(rows)), torch.arange(count) * 2**33 + 5


def ids_of(vocabulary: Vocabulary, tokens: torch.Tensor) -> torch.Tensor:
    return tokens.long() & (vocabulary.soft_mask_bit - 1)


@pytest.mark.parametrize("spec", OVERLAP)
def test_what_is_shown_of_overlapping_kmers_is_the_kmers_of_a_text_with_gaps_and_other_letters(spec: str) -> None:
    vocabulary = load_vocabulary(spec)
    tokens, keys = windows(vocabulary, 200)
    ids = ids_of(vocabulary, tokens)
    batch = recipe(vocabulary, rate=0.3, replace_with_mask=0.5, replace_with_random=0.4)(tokens, keys, torch.zeros(0))
    replaced = 0
    for row in range(200):
        letters = list(vocabulary.decode(ids[row].numpy()).replace("[SEP]", "|"))
        gone = {
            p for p, hidden in zip(batch.positions[row].tolist(), batch.hidden[row].tolist(), strict=True) if hidden
        }
        assert all(letters[p] in "ACGT" for p in gone)
        shown = batch.input_ids[row].tolist()
        # Which base was replaced by which is told by the first letters of the tokens that are shown.
        for p in set(batch.positions[row].tolist()) - gone:
            views = range(max(0, p - vocabulary.views + 1), p + 1)
            spelled = {i: vocabulary.tokens[shown[i]] for i in views if set(vocabulary.tokens[shown[i]]) <= set("ACGT")}
            now = next((token[p - i] for i, token in spelled.items() if len(token) > p - i), letters[p])
            replaced += now != letters[p]
            letters[p] = now
        expected = []
        for part in "".join(letters).split("|"):
            expected += [*encoded(vocabulary, part).tolist(), vocabulary.sep]
        for at, token in enumerate(expected[:LENGTH]):
            size = len(vocabulary.tokens[token]) if token != vocabulary.sep else 1
            assert shown[at] == (vocabulary.mask if gone & set(range(at, at + size)) else token)
    assert replaced > 100


@pytest.mark.parametrize("spec", APART + OVERLAP)
def test_k_predictions_a_window_of_acgt_tokens_with_their_true_ids(spec: str) -> None:
    vocabulary = load_vocabulary(spec)
    tokens = torch.from_numpy(
        np.stack(
            [
                encoded(vocabulary, "".join(np.random.default_rng(i).choice(list("ACGT"), 900)))[:LENGTH]
                for i in range(50)
            ]
        )
    )
    masking = recipe(vocabulary)
    batch = masking(tokens, torch.arange(50), torch.zeros(0))
    assert batch.positions.shape == (50, masking.count(LENGTH))
    assert torch.equal(batch.labels, ids_of(vocabulary, tokens).gather(1, batch.positions))
    assert (batch.weights == 1).all()
    assert (batch.labels >= vocabulary.first_long).all()
    if vocabulary.views == 1:
        shown = batch.input_ids.gather(1, batch.positions)
        assert torch.equal(shown == vocabulary.mask, batch.hidden)
        assert masking.count(LENGTH) == 19
        changed = shown[~batch.hidden & (shown != batch.labels)]
        assert len(changed) > 30
        assert ((changed >= vocabulary.first_long) | (changed < 4)).all()


@pytest.mark.parametrize("spec", APART + OVERLAP)
def test_the_other_strand_has_the_tokens_of_the_other_text(spec: str) -> None:
    """For k-mers that are apart, of records whose runs are multiples of k; others are cut from the other end."""
    vocabulary = load_vocabulary(spec)
    partner = str.maketrans("ACGTacgtNR|", "TGCAtgcaNY|")
    complement = torch.from_numpy(vocabulary.complement_table).long()
    for seed in range(50):
        parts = texts(4, seed)
        if vocabulary.views == 1:
            k = vocabulary.k  # type: ignore[attr-defined]
            parts = ["".join(c for c in part if c not in "NR") for part in parts]
            parts = [part[: len(part) // k * k].upper() for part in parts]
        separator = np.array([vocabulary.sep], dtype=vocabulary.dtype)

        def stream(texts: list[str], separator: np.ndarray = separator) -> np.ndarray:
            return np.concatenate([np.append(encoded(vocabulary, part), separator) for part in texts])[:-1]

        other = [part.translate(partner)[::-1] for part in reversed(parts)]
        found = reverse_complement(torch.from_numpy(stream(parts)).long()[None], complement, vocabulary)
        np.testing.assert_array_equal(found[0].numpy(), stream(other))
        again = reverse_complement(found, complement, vocabulary)
        np.testing.assert_array_equal(again[0].numpy(), stream(parts))


def test_left_over_letters_come_first_on_the_other_strand() -> None:
    vocabulary = load_vocabulary("kmer:3")
    complement = torch.from_numpy(vocabulary.complement_table).long()
    found = reverse_complement(torch.from_numpy(encoded(vocabulary, "ACGTTGCA")).long()[None], complement, vocabulary)
    assert [vocabulary.tokens[i] for i in found[0].tolist()] == ["T", "G", "CAA", "CGT"]


@pytest.mark.parametrize("spec", APART + OVERLAP)
def test_over_all_groups_every_token_of_acgt_is_predicted_once(spec: str) -> None:
    vocabulary = load_vocabulary(spec)
    tokens, keys = windows(vocabulary, 60)
    ids = ids_of(vocabulary, tokens)
    times = torch.zeros_like(ids)
    for group in range(5):
        shown, predicted = mask_group(tokens, keys, group, 5, vocabulary)
        times += predicted
        assert (shown[predicted] == vocabulary.mask).all()
        for row, at in predicted.nonzero().tolist():
            before = range(max(0, at - vocabulary.views + 1), at)
            assert all(
                shown[row, i] == vocabulary.mask
                or len(vocabulary.tokens[int(shown[row, i])]) <= at - i
                or shown[row, i] < 23
                for i in before
            )
    spelled = [[set(vocabulary.tokens[i]) <= set("ACGT") for i in row] for row in ids.tolist()]
    assert torch.equal(times, torch.tensor(spelled).long())


@given(hidden=st.floats(0.01, 0.9), views=st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_as_many_bases_are_gone_with_overlapping_kmers(hidden: float, views: int) -> None:
    share = anchor_share(hidden, views)
    assert share == hidden if views == 1 else 0 < share < hidden
    anchor = np.random.default_rng(0).random(200_000) < share
    masked = anchor.copy()  # token i shows bases i to i + views - 1
    for ahead in range(1, views):
        masked[:-ahead] |= anchor[ahead:]
    gone = np.ones(len(anchor), dtype=bool)
    for before in range(views):
        gone[before:] &= masked[: len(masked) - before]
    assert gone[views:].mean() == pytest.approx(hidden, abs=0.01)


@pytest.mark.parametrize("spec", ["kmer:6", "kmer:6:overlap"])
def test_soft_masked_tokens_carry_the_repeat_weight(spec: str) -> None:
    vocabulary = load_vocabulary(spec)
    tokens, keys = windows(vocabulary, 100)
    batch = recipe(vocabulary, repeat_weight=0.25)(tokens, keys, torch.zeros(0))
    soft = (tokens.long() & vocabulary.soft_mask_bit).gather(1, batch.positions) != 0
    counted = batch.weights > 0
    assert soft[counted].any()
    assert torch.equal(batch.weights[counted], torch.where(soft, 0.25, 1.0)[counted])
    assert int(batch.input_ids.max()) < len(vocabulary)
