"""Tallies: nothing is lost silently, and the sum does not depend on how the work was cut into tasks."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnascale.data.tally import Count, Tally, sentences

_REASONS = st.sampled_from(["empty", "shorter than 10 bases", "outside the regions", "in-frame stop"])
_SIZES = st.integers(0, 10**12)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    """A tally after a random history of calls."""
    tally = Tally(cut=draw(_SIZES), repeated=draw(_SIZES), contigs=draw(st.sets(st.sampled_from(["1", "2", "MT"]))))
    for bases in draw(st.lists(_SIZES, max_size=4)):
        tally.read(bases)
        tally.keep(bases // 2)
        tally.drop(draw(_REASONS), bases - bases // 2, draw(st.integers(0, 1)))
        tally.note("U read as T", bases // 3)
        tally.skip(draw(st.sampled_from(["no strand", "trans-splicing"])))
        tally.meet({draw(st.sampled_from("URY")): bases // 5})
        tally.near["1"] = draw(st.sampled_from(["chr1", "CHR1"]))
    for number in range(draw(st.integers(0, 30))):
        tally.warn(f"warning {number}")
    return tally


@given(tallies())
def test_a_tally_survives_json(tally):
    assert Tally.from_dict(json.loads(json.dumps(tally.to_dict()))) == tally


@given(st.lists(tallies(), max_size=5), st.integers(0, 5))
def test_the_sum_does_not_depend_on_the_cut(parts, at):
    one_by_one = Tally()
    for part in parts:
        one_by_one.merge(part)
    left, right = Tally(), Tally()
    for part in parts[:at]:
        left.merge(part)
    for part in parts[at:]:
        right.merge(part)
    assert left.merge(right) == one_by_one
    assert one_by_one.bases_in == sum(part.bases_in for part in parts)
    assert len(one_by_one.warnings) + one_by_one.further_warnings == sum(
        len(part.warnings) + part.further_warnings for part in parts
    )


def test_the_order_of_the_calls_does_not_show_in_json():
    forth, back = Tally(), Tally()
    for reason in ("b", "a"):
        forth.drop(reason, 1)
        forth.contigs.add(reason)
    for reason in ("a", "b"):
        back.drop(reason, 1)
        back.contigs.add(reason)
    assert json.dumps(forth.to_dict()) == json.dumps(back.to_dict())


def test_merging_leaves_the_other_tally_alone():
    one, other = Tally(), Tally()
    other.drop("empty", 5)
    one.merge(other).drop("empty", 1)
    assert asdict(other)["dropped"] == {"empty": {"records": 1, "bases": 5}}
    assert one.dropped == {"empty": Count(2, 6)}


def test_the_balance_finds_lost_bases_and_lost_records():
    tally = Tally()
    tally.read(100)
    tally.cut, tally.repeated = 1, 10
    tally.keep(60)
    tally.keep(40)
    tally.drop("N run", 10, records=0)
    tally.balance()
    tally.bases_out -= 1
    with pytest.raises(AssertionError, match="bases do not add up: 110 came in and 109"):
        tally.balance()
    tally.bases_out += 1
    tally.records_in += 1
    with pytest.raises(AssertionError, match="records do not add up: 3 came in and 2"):
        tally.balance()


def test_the_lines_for_people_say_everything():
    tally = Tally(cut=612, repeated=3000)
    assert len(sentences(Tally().to_dict())) == 1
    tally.read(63_025_520)
    tally.drop("outside the regions", 62_000_000, records=0)
    tally.skip("no strand")
    tally.note("bases U read as T", 4000)
    tally.meet({"U": 4000, "R": 2})
    for number in range(22):
        tally.warn(f"warning {number}")
    lines = sentences(tally.to_dict())
    assert lines[:6] == [
        "read     1 records, 63,025,520 bases",
        "cut      into 612 more records, 3,000 bases taken more than once",
        "dropped  62,000,000 bases: outside the regions",
        "skipped  1 regions: no strand",
        "noted    4,000 bases U read as T",
        "letters  2 R, 4,000 U were read beside A, C, G, T and N",
    ]
    assert lines[6] == "warning  warning 0"
    assert lines[-1] == "warning  2 more are not shown"
