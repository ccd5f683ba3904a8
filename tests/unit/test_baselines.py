"""Count-based baselines against a dictionary implementation, known chains and closed forms."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from dnascale.errors import DataError
from dnascale.evaluate import baselines
from dnascale.evaluate.baselines import Baseline, ContextModel, fit_and_score

EMPTY_SPLITS: list[list[np.ndarray]] = [
    [],
    [np.empty(0, dtype=np.uint8)],
    [np.full(9, 4, dtype=np.uint8), np.full(5, 14, dtype=np.uint8)],
]


def random_records(seed: int, count: int, longest: int, symbols: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, symbols, rng.integers(0, longest + 1), dtype=np.uint8) for _ in range(count)]


def naive_probability(
    train: Sequence[np.ndarray], left: int, right: int, phase: bool, alphas: Sequence[float]
) -> Callable[[np.ndarray, int], list[float]]:
    """The definition, in dictionaries keyed by the neighbours themselves."""

    def context(record: np.ndarray, at: int, length: int) -> tuple[object, ...]:
        def symbol(i: int) -> int:
            return min(int(record[i]), 4) if 0 <= i < len(record) else 4

        before = tuple(symbol(at - j) for j in range(1, min(left, length) + 1))
        after = tuple(symbol(at + j) for j in range(1, min(right, length) + 1))
        return (length, before, after, at % 3 if phase else None)

    counts: dict[tuple[object, ...], list[int]] = defaultdict(lambda: [0] * 4)
    for record in train:
        for at, base in enumerate(record):
            if base < 4:
                for length in range(len(alphas)):
                    counts[context(record, at, length)][base] += 1

    def probability(record: np.ndarray, at: int) -> list[float]:
        p = [0.25] * 4
        for length, alpha in enumerate(alphas):
            seen = counts[context(record, at, length)]
            p = [(seen[b] + alpha * p[b]) / (sum(seen) + alpha) for b in range(4)]
        return p

    return probability


def markov_chain(seed: int, order: int, records: int, length: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Transition table [4]*order + [4] drawn at random, and records of the chain."""
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(99).dirichlet([0.7] * 4, size=(4,) * order)
    states = rng.integers(0, 4, (records, length + 200), dtype=np.uint8)
    for at in range(order, states.shape[1]):
        rows = table[tuple(states[:, at - order + j] for j in range(order))]
        states[:, at] = (rng.random((records, 1)) > rows.cumsum(axis=1)[:, :3]).sum(axis=1)
    return table, list(states[:, 200:])  # the first 200 steps reach the stationary distribution


def entropy_rate(table: np.ndarray) -> float:
    """-sum of pi(state) p ln p for an order-2 table, with pi by iteration."""
    pi = np.full((4, 4), 1 / 16)
    for _ in range(2000):
        pi = np.einsum("ab,abc->bc", pi, table)
    return float(-np.einsum("ab,abc,abc->", pi, table, np.log(table)))


def by_name(lines: Sequence[Baseline]) -> dict[str, float]:
    return {line.name: line.nats_per_base for line in lines}


@pytest.mark.parametrize("phase", [False, True])
@pytest.mark.parametrize(("left", "right"), [(0, 0), (1, 0), (3, 0), (0, 2), (1, 1), (2, 2), (3, 1), (1, 3)])
def test_probabilities_equal_those_of_a_dictionary_implementation(left: int, right: int, phase: bool) -> None:
    train = random_records(1, count=12, longest=60, symbols=7)
    alphas = [0.5, 2.0, 3.7, 11.0][: max(left, right) + 1]
    model = ContextModel(left, right, phase, alphas).fit(train)
    probability = naive_probability(train, left, right, phase, alphas)
    for record in [*train[:4], *random_records(2, count=4, longest=40, symbols=7)]:
        expected = np.array([probability(record, at) for at in range(len(record))]).reshape(-1, 4)
        np.testing.assert_allclose(np.exp(model.log_probability(record)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("left", "right", "phase"), [(3, 0, False), (2, 2, False), (2, 2, True)])
def test_loss_of_every_length_equals_that_of_a_dictionary_implementation(left: int, right: int, phase: bool) -> None:
    train = random_records(3, count=10, longest=80, symbols=6)
    held_out = random_records(4, count=5, longest=50, symbols=6)
    alphas = [1.0, 4.0, 9.0, 16.0][: left + 1]
    losses = ContextModel(left, right, phase, alphas).fit(train).nats_per_base(held_out)
    for length, loss in enumerate(losses):
        probability = naive_probability(train, min(left, length), min(right, length), phase, alphas[: length + 1])
        scored = [
            -math.log(probability(record, at)[base])
            for record in held_out
            for at, base in enumerate(record)
            if base < 4
        ]
        assert loss == pytest.approx(np.mean(scored), abs=1e-12)


@pytest.mark.parametrize(("left", "right", "phase"), [(7, 0, False), (4, 4, False), (4, 4, True)])
def test_probabilities_sum_to_one_with_the_chosen_alphas(left: int, right: int, phase: bool) -> None:
    records = random_records(5, count=40, longest=200, symbols=5)
    log_p = ContextModel(left, right, phase).fit(records).log_probability(records[0])
    assert log_p.shape == (len(records[0]), 4)
    assert log_p.dtype == np.float64
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=0, atol=1e-12)


def test_an_order_2_chain_gets_its_entropy_rate_at_order_2_and_no_less_beyond() -> None:
    table, train = markov_chain(6, order=2, records=100, length=3000)
    _, held_out = markov_chain(7, order=2, records=100, length=3000)
    scores = by_name(fit_and_score(train, held_out))
    truth = -np.mean([np.log(table[r[:-2], r[1:-1], r[2:]]).mean() for r in held_out])
    assert truth == pytest.approx(entropy_rate(table), abs=0.005)
    assert scores["Markov order 2"] == pytest.approx(entropy_rate(table), abs=0.005)
    assert scores["Markov order 2"] == pytest.approx(truth, abs=0.001)
    assert scores["Markov order 1"] > scores["Markov order 2"] + 0.05
    assert scores["Markov order 7"] == pytest.approx(scores["Markov order 2"], abs=0.001)


def test_a_two_sided_context_of_a_chain_gets_the_posterior_of_the_missing_base() -> None:
    table, train = markov_chain(8, order=1, records=100, length=3000)
    _, held_out = markov_chain(9, order=1, records=100, length=3000)
    joint = table[:, :, None] * table[None, :, :]  # previous, missing, next
    posterior = joint / joint.sum(axis=1, keepdims=True)
    truth = -np.mean([np.log(posterior[r[:-2], r[1:-1], r[2:]]).mean() for r in held_out])
    scores = by_name(fit_and_score(train, held_out))
    assert scores["context 1+1"] == pytest.approx(truth, abs=0.001)
    assert scores["context 4+4"] == pytest.approx(truth, abs=0.002)
    assert scores["context 1+1"] < scores["Markov order 1"] - 0.05


def test_random_bases_score_ln_4_under_every_baseline() -> None:
    rng = np.random.default_rng(10)
    records = [rng.integers(0, 4, 500, dtype=np.uint8) for _ in range(400)]
    for line in fit_and_score(records[:200], records[200:]):
        assert line.nats_per_base == pytest.approx(math.log(4), abs=0.002), line.name


def test_a_base_fixed_by_its_codon_phase_is_learned_only_by_the_phase_models() -> None:
    rng = np.random.default_rng(11)
    records = [rng.integers(0, 4, 300, dtype=np.uint8) for _ in range(200)]
    for record in records:
        record[::3] = rng.integers(0, 2, 100)  # A or T at the first position of every codon
    scores = by_name(fit_and_score(records[:100], records[100:]))
    in_phase = (math.log(2) + 2 * math.log(4)) / 3
    assert scores["context 3+3 + codon phase"] == pytest.approx(in_phase, abs=0.005)
    assert scores["Markov order 7"] > in_phase + 0.02
    assert scores["context 1+1"] > in_phase + 0.05


def test_the_order_of_the_records_changes_no_score() -> None:
    train = random_records(12, count=60, longest=120, symbols=6)
    held_out = random_records(13, count=20, longest=120, symbols=6)
    assert fit_and_score(train[::-1], held_out[::-1]) == fit_and_score(train, held_out)


def test_a_base_next_to_a_record_end_or_another_symbol_counts_in_a_context_of_its_own() -> None:
    a, t, c = np.zeros(50, dtype=np.uint8), np.ones(50, dtype=np.uint8), np.array([2, 9, 2], dtype=np.uint8)
    model = ContextModel(1, 0, alphas=[1e-9, 1e-9]).fit([a, t, c])
    p = np.exp(model.log_probability(np.array([0, 0, 1, 1, 17, 2], dtype=np.uint8)))
    np.testing.assert_allclose(p[1], [1, 0, 0, 0], atol=1e-8)  # after A only A: T opens its own record
    np.testing.assert_allclose(p[3], [0, 1, 0, 0], atol=1e-8)
    np.testing.assert_allclose(p[0], [1 / 4, 1 / 4, 2 / 4, 0], atol=1e-8)  # A, T, C at a start, C after N
    np.testing.assert_allclose(p[5], p[0])


def test_a_record_cut_into_indexing_chunks_is_counted_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    records = random_records(14, count=9, longest=90, symbols=6)
    whole = ContextModel(2, 2, phase=True, alphas=[1, 2, 3]).fit(records).nats_per_base(records)
    monkeypatch.setattr(baselines, "CHUNK", 7)
    assert ContextModel(2, 2, phase=True, alphas=[1, 2, 3]).fit(records).nats_per_base(records) == whole


def test_chosen_alphas_score_close_to_the_best_on_the_held_out_records() -> None:
    _, records = markov_chain(15, order=3, records=60, length=600)
    train, held_out = records[:40], records[40:]
    chosen = ContextModel(5).fit(train)
    assert chosen.alphas is not None
    loss = chosen.nats_per_base(held_out)[-1]
    for length in range(6):
        for factor in (1 / 16, 1 / 4, 4, 16):
            alphas = list(chosen.alphas)
            alphas[length] *= factor
            assert loss < ContextModel(5, alphas=alphas).fit(train).nats_per_base(held_out)[-1] + 0.002


def test_one_long_record_is_cut_to_choose_alphas_and_one_short_record_uses_the_default() -> None:
    _, (long,) = markov_chain(16, order=2, records=1, length=3 * baselines.PIECE)
    assert len(set(ContextModel(4).fit([long]).alphas or ())) > 1
    assert ContextModel(1).fit([long[:100]]).alphas == (baselines.ALPHA_WITHOUT_A_SLICE,) * 2


def test_lines_carry_the_names_shown_to_people_and_the_number_of_bases_scored() -> None:
    train = random_records(17, count=5, longest=50)
    held_out = [np.array([0, 1, 4, 2, 3, 11], dtype=np.uint8), np.array([4], dtype=np.uint8)]
    said: list[str] = []
    lines = fit_and_score(train, held_out, said.append)
    flanks = [f"context {k}+{k}" for k in range(1, 5)]
    assert [line.name for line in lines] == [
        "uniform (ln 4)",
        "composition",
        *(f"Markov order {order}" for order in range(1, 8)),
        *flanks,
        *(f"{name} + codon phase" for name in flanks),
    ]
    assert {line.bases for line in lines} == {4}
    assert lines[0].nats_per_base == math.log(4)
    assert len(said) == 3


@pytest.mark.parametrize("empty", EMPTY_SPLITS)
def test_splits_without_a_predictable_base_are_refused_in_one_sentence(empty: list[np.ndarray]) -> None:
    full = [np.array([0, 1, 2, 3], dtype=np.uint8)]
    with pytest.raises(DataError, match=r"^The training split holds no A, T, C or G, [^.]*\.$"):
        fit_and_score(empty, full)
    with pytest.raises(DataError, match=r"^The held-out split holds no A, T, C or G, [^.]*\.$"):
        fit_and_score(full, empty)
    with pytest.raises(DataError, match=r"^The held-out split holds no A, T, C or G, [^.]*\.$"):
        ContextModel(1).fit(full).nats_per_base(empty)


def test_an_empty_record_has_no_probabilities() -> None:
    model = ContextModel(2, 2).fit([np.array([0, 1, 2], dtype=np.uint8)])
    assert model.log_probability(np.empty(0, dtype=np.uint8)).shape == (0, 4)


def test_impossible_contexts_alphas_and_unfitted_models_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot have -1 left"):
        ContextModel(-1)
    with pytest.raises(ValueError, match="needs 3 positive alphas"):
        ContextModel(2, 1, alphas=[1.0, 1.0])
    with pytest.raises(ValueError, match="needs 1 positive alphas"):
        ContextModel(0, alphas=[0.0])
    with pytest.raises(ValueError, match="not been fitted"):
        ContextModel(1).log_probability(np.zeros(3, dtype=np.uint8))
