"""Masking: the same choices as plain Python integers make, in the right numbers, for the window alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data.masking import MaskedBatch, Masking, mask_group, position_hash, reverse_complement
from dnascale.vocab import CHARACTER, SOFT_MASK_BIT

COMPLEMENT = torch.from_numpy(CHARACTER.complement_table).long()
U32 = 2**32 - 1
# Salts of the decisions: the first words of the fraction of pi.
CHOOSE, REPLACE, RANDOM_BASE, STRAND, GROUP = 0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822


def recipe(**changes: Any) -> Masking:
    values = {
        "rate": 0.2,
        "replace_with_mask": 0.8,
        "replace_with_random": 0.1,
        "reverse_complement": False,
        "repeat_weight": 1.0,
    }
    return Masking(CHARACTER, **(values | changes))


def windows(count: int, length: int, seed: int = 0, tokens: int = 23) -> tuple[torch.Tensor, torch.Tensor]:
    """Random stored tokens (bit 7 on some), mostly bases, and keys up to 2^63."""
    rng = np.random.default_rng(seed)
    stored = np.where(
        rng.random((count, length)) < 0.9,
        rng.integers(0, 4, (count, length)),
        rng.integers(0, tokens, (count, length)),
    )
    stored |= (rng.random((count, length)) < 0.3) << 7
    return torch.from_numpy(stored.astype(np.uint8)), torch.from_numpy(rng.integers(0, 2**63, count))


def rows(batch: MaskedBatch) -> list[tuple[list[Any], ...]]:
    parts = (batch.input_ids, batch.positions, batch.labels, batch.weights, batch.hidden)
    return list(zip(*(part.tolist() for part in parts), strict=True))


# --- an independent implementation, with Python's integers ---


def lowbias32(x: int) -> int:
    x = ((x ^ x >> 16) * 0x7FEB352D) & U32
    x = ((x ^ x >> 15) * 0x846CA68B) & U32
    return x ^ x >> 16


def naive_hash(key: int, position: int, salt: int) -> int:
    window = lowbias32(lowbias32(key & U32 ^ salt) ^ key >> 32)
    return lowbias32((window + position * 0x9E3779B9) & U32)


def naive_reverse_complement(stored: list[int]) -> list[int]:
    text = CHARACTER.decode(np.array(stored, dtype=np.int64)) if all(t & 0x7F < 18 for t in stored) else None
    pairs = dict(zip("ATCGNUiRYKMSWBDHV-", "TAGCNAiYRMKSWVHDB-", strict=True))
    out = []
    for token in reversed(stored):
        name = CHARACTER.tokens[token & 0x7F]
        out.append(CHARACTER.tokens.index(pairs.get(name, name)) | token & SOFT_MASK_BIT)
    if text is not None and set(text) <= set("ACGTacgt"):
        assert CHARACTER.decode(np.array(out)) == text[::-1].translate(str.maketrans("ACGTacgt", "TGCAtgca"))
    return out


def naive_masking(masking: Masking, stored: list[int], key: int) -> tuple[list[Any], ...]:
    if masking.reverse_complement and naive_hash(key, 0, STRAND) % 2:
        stored = naive_reverse_complement(stored)
    ids = [token & 0x7F for token in stored]
    ranked = sorted(range(len(ids)), key=lambda at: (ids[at] > 3, naive_hash(key, at, CHOOSE), at))
    chosen = sorted(ranked[: max(1, round(masking.rate * len(ids)))])
    shown, labels, weights, hidden = list(ids), [], [], []
    for at in chosen:
        labels.append(ids[at])
        predictable = ids[at] in (0, 1, 2, 3)
        weights.append((masking.repeat_weight if stored[at] & 0x80 else 1.0) if predictable else 0.0)
        fate = naive_hash(key, at, REPLACE) / 2**32
        hidden.append(predictable and fate < masking.replace_with_mask)
        if hidden[-1]:
            shown[at] = 22
        elif predictable and fate < masking.replace_with_mask + masking.replace_with_random:
            shown[at] = naive_hash(key, at, RANDOM_BASE) % 4
    return shown, chosen, labels, weights, hidden


@pytest.mark.parametrize("length", [1, 2, 31, 256])
@pytest.mark.parametrize(
    "changes",
    [{}, {"reverse_complement": True, "repeat_weight": 0.25}, {"rate": 0.9, "replace_with_mask": 0.0}, {"rate": 0.01}],
)
def test_masking_equals_an_implementation_in_plain_python(length: int, changes: dict[str, Any]) -> None:
    masking = recipe(**changes)
    tokens, keys = windows(40, length)
    keys[:4] = torch.tensor([0, 1, 2**32, 2**63 - 1])
    expected = [naive_masking(masking, w, k) for w, k in zip(tokens.tolist(), keys.tolist(), strict=True)]
    assert rows(masking(tokens, keys, COMPLEMENT)) == expected


@given(key=st.integers(0, 2**63 - 1), length=st.integers(1, 300), salt=st.integers(0, U32))
@settings(deadline=None)
def test_hash_equals_plain_python_integers(key: int, length: int, salt: int) -> None:
    assert position_hash(torch.tensor([key]), length, salt)[0].tolist() == [
        naive_hash(key, at, salt) for at in range(length)
    ]


@pytest.mark.gpu
def test_masking_is_bit_identical_on_the_accelerator() -> None:
    device = "cuda" if torch.cuda.is_available() else "mps"
    if device == "mps" and not torch.backends.mps.is_available():
        pytest.skip("no accelerator")
    masking = recipe(reverse_complement=True, repeat_weight=0.25)
    tokens, keys = windows(512, 1024)
    there = masking(tokens.to(device), keys.to(device), COMPLEMENT.to(device))
    assert rows(there) == rows(masking(tokens, keys, COMPLEMENT))
    ids, hidden = mask_group(tokens.to(device), keys.to(device), 3, 7, CHARACTER)
    expected_ids, expected_hidden = mask_group(tokens, keys, 3, 7, CHARACTER)
    assert torch.equal(ids.cpu(), expected_ids)
    assert torch.equal(hidden.cpu(), expected_hidden)


# --- what is chosen ---


@pytest.mark.parametrize(("rate", "length", "expected"), [(0.2, 512, 102), (0.3, 10, 3), (0.01, 20, 1), (0.9, 10, 9)])
def test_exactly_k_positions_are_chosen_in_every_window(rate: float, length: int, expected: int) -> None:
    masking = recipe(rate=rate)
    batch = masking(*windows(200, length), COMPLEMENT)
    assert masking.count(length) == expected
    for part in (batch.positions, batch.labels, batch.weights, batch.hidden):
        assert part.shape == (200, expected)
    assert (batch.positions.diff(dim=1) > 0).all()  # ascending, none twice
    assert batch.input_ids.dtype == batch.positions.dtype == batch.labels.dtype == torch.int64
    assert batch.weights.dtype == torch.float32


def test_only_acgt_are_chosen_where_there_are_enough_and_labels_are_the_truth() -> None:
    tokens, keys = windows(300, 100)
    batch = recipe()(tokens, keys, COMPLEMENT)
    assert batch.labels.max() <= 3
    assert torch.equal(batch.labels, (tokens.long() & 0x7F).gather(1, batch.positions))
    assert (batch.weights == 1).all()
    chosen = torch.zeros(300, 100, dtype=torch.bool).scatter(1, batch.positions, True)
    assert torch.equal(batch.input_ids[~chosen], (tokens.long() & 0x7F)[~chosen])


def test_a_window_with_too_few_bases_predicts_those_and_leaves_the_rest_alone() -> None:
    masking = recipe(rate=0.5)
    for bases in range(8):
        tokens = torch.full((50, 10), CHARACTER.sep, dtype=torch.uint8)
        tokens[:, 3 : 3 + bases] = torch.randint(0, 4, (50, bases), dtype=torch.uint8)
        batch = masking(tokens, torch.arange(50), COMPLEMENT)
        assert (batch.weights.sum(dim=1) == min(bases, 5)).all()
        assert (batch.weights[batch.labels > 3] == 0).all()
        assert not batch.hidden[batch.labels > 3].any()
        assert (batch.input_ids[tokens == CHARACTER.sep] == CHARACTER.sep).all()


def test_every_base_is_chosen_equally_often_at_every_position() -> None:
    tokens = torch.zeros((4000, 50), dtype=torch.uint8)
    batch = recipe(rate=0.2)(tokens, torch.arange(4000), COMPLEMENT)
    counts = torch.bincount(batch.positions.flatten(), minlength=50).double()
    chi_square = float(((counts - 800) ** 2 / 800).sum())
    assert chi_square < 49 + 5 * np.sqrt(2 * 49)
    # Whether two neighbours are chosen together is as for two draws without replacement.
    chosen = torch.zeros(4000, 50).scatter(1, batch.positions, 1.0)
    together = float((chosen[:, 1:] * chosen[:, :-1]).mean())
    assert together == pytest.approx(0.2 * 9 / 49, abs=0.002)


def test_of_the_chosen_80_10_10_percent_are_hidden_random_and_kept() -> None:
    tokens = torch.randint(0, 4, (2000, 200), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    batch = recipe()(tokens, torch.arange(2000) * 2**31, COMPLEMENT)
    shown = batch.input_ids.gather(1, batch.positions)
    count = batch.labels.numel()
    assert count == 80_000

    def near(found: torch.Tensor, share: float, of: int = count) -> bool:
        return abs(int(found.sum()) - share * of) < 5 * np.sqrt(of * share * (1 - share))

    assert torch.equal(shown == CHARACTER.mask, batch.hidden)
    assert near(batch.hidden, 0.8)
    assert near(shown == batch.labels, 0.1 + 0.1 / 4)  # a random base is the true one in a quarter of the cases
    changed = ~batch.hidden & (shown != batch.labels)
    assert near(changed, 0.1 * 3 / 4)
    assert set(shown[~batch.hidden].tolist()) == {0, 1, 2, 3}
    pairs = Counter(zip(batch.labels[changed].tolist(), shown[changed].tolist(), strict=True))
    assert len(pairs) == 12
    assert all(abs(n - 500) < 5 * np.sqrt(500) for n in pairs.values())


def test_other_shares_are_kept_too() -> None:
    tokens = torch.zeros((300, 100), dtype=torch.uint8)
    everything = recipe(replace_with_mask=1.0, replace_with_random=0.0)(tokens, torch.arange(300), COMPLEMENT)
    assert everything.hidden.all()
    nothing = recipe(replace_with_mask=0.0, replace_with_random=0.0)(tokens, torch.arange(300), COMPLEMENT)
    assert not nothing.hidden.any()
    assert torch.equal(nothing.input_ids, tokens.long())
    random = recipe(replace_with_mask=0.0, replace_with_random=1.0)(tokens, torch.arange(300), COMPLEMENT)
    counts = torch.bincount(random.input_ids.gather(1, random.positions).flatten(), minlength=23)
    assert counts[4:].sum() == 0
    assert all(abs(n - 1500) < 5 * np.sqrt(1500) for n in counts[:4].tolist())


def test_a_window_is_masked_the_same_in_any_company_and_order() -> None:
    masking = recipe(reverse_complement=True, repeat_weight=0.5)
    tokens, keys = windows(64, 128)
    whole = rows(masking(tokens, keys, COMPLEMENT))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert rows(masking(tokens[order], keys[order], COMPLEMENT)) == [whole[i] for i in order.tolist()]
    for row in (0, 17, 63):
        assert rows(masking(tokens[row : row + 1], keys[row : row + 1], COMPLEMENT)) == [whole[row]]


def test_the_choice_of_bases_does_not_depend_on_which_bases_they_are() -> None:
    keys = torch.arange(100)
    one, other = (torch.full((100, 60), base, dtype=torch.uint8) for base in (0, 3))
    masking = recipe()
    assert torch.equal(masking(one, keys, COMPLEMENT).positions, masking(other, keys, COMPLEMENT).positions)


# --- strand and weights ---


def test_reverse_complement_equals_plain_python_and_undoes_itself() -> None:
    tokens, _ = windows(200, 77)
    stored = tokens.long()
    flipped = reverse_complement(stored, COMPLEMENT)
    assert flipped.tolist() == [naive_reverse_complement(window) for window in stored.tolist()]
    uracil = stored & 0x7F == 5  # pairs with A, which pairs with T
    again = reverse_complement(flipped, COMPLEMENT)
    assert torch.equal(again[~uracil], stored[~uracil])


def test_about_half_of_the_windows_are_shown_as_their_other_strand() -> None:
    tokens = torch.zeros((10_000, 4), dtype=torch.uint8)  # AAAA, whose other strand is TTTT
    batch = recipe(rate=0.25, reverse_complement=True)(tokens, torch.arange(10_000), COMPLEMENT)
    turned = batch.labels[:, 0] == 1
    assert abs(int(turned.sum()) - 5000) < 5 * 50
    assert abs(np.corrcoef(turned[1:], turned[:-1])[0, 1]) < 0.05
    never = recipe(rate=0.25)(tokens, torch.arange(10_000), COMPLEMENT)
    assert (never.labels == 0).all()


@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_soft_masked_bases_carry_the_repeat_weight(weight: float) -> None:
    tokens, keys = windows(100, 200)
    batch = recipe(repeat_weight=weight)(tokens, keys, COMPLEMENT)
    soft = (tokens.long() & SOFT_MASK_BIT).gather(1, batch.positions) != 0
    assert soft.any()
    assert torch.equal(batch.weights, torch.where(soft, torch.tensor(weight), torch.tensor(1.0)))
    assert int(batch.input_ids.max()) <= CHARACTER.mask  # the bit never reaches the model


# --- groups for evaluation ---


@pytest.mark.parametrize("groups", [1, 2, 7])
def test_over_all_groups_every_base_is_hidden_exactly_once_and_nothing_else(groups: int) -> None:
    tokens, keys = windows(100, 150)
    ids = tokens.long() & 0x7F
    times = torch.zeros_like(ids)
    for group in range(groups):
        input_ids, hidden = mask_group(tokens, keys, group, groups, CHARACTER)
        times += hidden
        assert torch.equal(input_ids, torch.where(hidden, CHARACTER.mask, ids))
        expected = [
            [t & 0x7F < 4 and naive_hash(key, at, GROUP) % groups == group for at, t in enumerate(window)]
            for window, key in zip(tokens.tolist(), keys.tolist(), strict=True)
        ]
        assert hidden.tolist() == expected
        assert int(hidden.sum()) == pytest.approx(int((ids < 4).sum()) / groups, rel=0.1)
    assert torch.equal(times, (ids < 4).long())
