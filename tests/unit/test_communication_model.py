"""The model of communication: what it must be by counting, and the link it fits to measurements."""

import pytest

from dnascale.bench.communication import (
    ENGINES,
    Cluster,
    Link,
    all_reduce_seconds,
    fit,
    half_seconds,
    messages,
    step_seconds,
)

FAST, SLOW = Link(300e9, 5e-6), Link(40e9, 20e-6)


def test_a_large_all_reduce_moves_two_n_minus_one_nths_through_each_link() -> None:
    node = Cluster(1, 8, FAST, SLOW)
    assert all_reduce_seconds(1e12, node) == pytest.approx(2 * 7 / 8 * 1e12 / 300e9, rel=1e-3)
    assert all_reduce_seconds(1e6, node) == pytest.approx(2 * half_seconds(1e6, node))


def test_between_nodes_each_device_sends_its_part_alone() -> None:
    inside = half_seconds(1e12, Cluster(1, 8, FAST, SLOW))
    both = half_seconds(1e12, Cluster(64, 8, FAST, SLOW))
    assert both - inside == pytest.approx(63 / 64 * 1e12 / 8 / 40e9, rel=1e-3)


def test_one_device_exchanges_nothing() -> None:
    assert all(step_seconds(engine, 10**9, 4, True, Cluster(1, 1, FAST, SLOW)) == 0 for engine in ENGINES)


def test_accumulation_costs_zero2_and_zero3_alone() -> None:
    def volume(engine: str, accumulation: int) -> float:
        return sum(size for _, size in messages(engine, 1000, accumulation, bf16=True))

    assert volume("ddp", 8) == volume("ddp", 1) == 4000
    assert volume("zero1", 8) == volume("zero1", 1) == 4000
    assert volume("zero2", 8) == 8 * 2000 + 2000
    assert volume("zero3", 8) == 8 * 3 * 2000


def test_the_link_that_made_the_measurements_is_found_again() -> None:
    true = Link(1.7e9, 30e-6)
    cluster = Cluster(1, 4, true, SLOW)
    rows = [{"bytes": size, "seconds": all_reduce_seconds(size, cluster)} for size in (8e3, 1e6, 16e6, 64e6)]
    found = fit(rows, 4)
    assert found.bandwidth == pytest.approx(true.bandwidth, rel=1e-6)
    assert found.latency == pytest.approx(true.latency, rel=1e-6)
