"""Sampled 31-mers and content digests: the same on both strands, in any context and case; against a naive count."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnascale.data.sources import Input, Record, read, resolve_all
from dnascale.data.split import Sketcher, content_digest, sampling_for
from dnascale.data.split import duplicates as duplicates_module
from dnascale.data.split import sketch as sketch_module
from dnascale.data.split.duplicates import later_copies
from dnascale.data.split.sketch import K, sketch
from dnascale.errors import UsageError
from dnascale.vocab import CHARACTER

RATES = (1, 4, 16, 64, 512, 1024)
PAIRS = dict(zip("ACGTUNRYKMSWBDHV", "TGCAANYRMKSWVHDB", strict=True))


def reverse_complement(text: str) -> str:
    return "".join(PAIRS[letter.upper()] for letter in reversed(text))


def codes(text: str) -> np.ndarray:
    return np.asarray(Record("x", "", text.encode(), 1).codes())


def sample(texts: list[str], every: int) -> tuple[list[int], list[int]]:
    """All values and the counts of the records, of `texts` one after the other."""
    ends = np.cumsum([len(text) for text in texts])
    values, counts = sketch(codes("".join(texts)), ends, every)
    return values.tolist(), counts.tolist()


def random_dna(rng: random.Random, length: int, letters: str = "ACGT") -> str:
    return "".join(rng.choices(letters, k=length))


# The same again, a letter at a time, from what docs/reference/splits.md says.

ID = {"A": 0, "T": 1, "C": 2, "G": 3}
STARTS = {1: [], 4: [0, 26], 16: [0, 26, 8, 18], 64: [0, 26, 8, 18, 16, 10], 512: [0, 26, 8, 18, 16, 10, 5, 13, 21]}


def naive_value(kmer: str) -> int:
    words = []
    for strand in (kmer, reverse_complement(kmer)):
        fields = [strand[0:8], strand[8:16], strand[15:23], strand[23:31]]
        words.append(sum(ID[fields[f][j]] << (8 * j + 2 * f) for f in range(4) for j in range(8)))
    x, mask = min(words), 2**64 - 1
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
    return x ^ x >> 31


def naive_sample(text: str, every: int) -> list[int]:
    text = text.upper().replace("U", "T")
    found = []
    for start in range(len(text) - K + 1):
        kmer = text[start : start + K]
        side = [letter in "TG" for letter in kmer]
        chosen = all(side[i] != side[i + 4] for i in STARTS[min(every, 512)])
        if chosen and set(kmer) <= set("ACGT"):
            value = naive_value(kmer)
            if every <= 512 or value < 2**64 // (every // 512):
                found.append(value)
    return found


@pytest.mark.parametrize("every", RATES)
def test_the_sample_is_what_a_naive_reading_of_the_rule_gives(every: int) -> None:
    rng = random.Random(every)
    text = random_dna(rng, 20_000) + "N" + random_dna(rng, 3000, "ACGTacgt") + random_dna(rng, 2000, "ACGTNU")
    values, (count,) = sample([text], every)
    expected = naive_sample(text, every)
    assert values == expected
    assert count == len(expected) > 5


def test_a_dense_sample_of_real_genes_has_every_canonical_31_mer_and_no_value_for_two() -> None:
    (path,) = resolve_all(["builtin:human-cds"])
    texts = [record.bases.decode() for record, _ in zip(read(Input.of(path)), range(9), strict=False)]
    strings = Counter(
        min(kmer, reverse_complement(kmer))
        for text in texts
        for kmer in (text[i : i + K] for i in range(len(text) - K + 1))
        if set(kmer) <= set("ACGT")
    )
    values, _ = sample(texts, 1)
    assert Counter(values) == Counter({naive_value(kmer): count for kmer, count in strings.items()})
    assert len(set(values)) == len(strings)


def test_every_sample_contains_the_sparser_ones_at_about_the_rate() -> None:
    text = random_dna(random.Random(1), 400_000)
    samples = [Counter(sample([text], every)[0]) for every in RATES]
    for dense, sparse in pairwise(samples):
        assert sparse <= dense
    for every, found in zip(RATES, samples, strict=True):
        expected = (len(text) - K + 1) / every
        assert abs(found.total() - expected) <= 6 * expected**0.5 + 1e-9


@pytest.mark.parametrize("every", RATES)
def test_the_reverse_complement_has_the_same_sample(every: int) -> None:
    text = random_dna(random.Random(every), 30_000, "ACGTACGTACGTN")
    assert Counter(sample([text], every)[0]) == Counter(sample([reverse_complement(text)], every)[0])


@settings(deadline=None, max_examples=60)
@given(st.text("ACGTacgtNU", max_size=300), st.text("ACGT", max_size=200), st.sampled_from(RATES[:4]))
def test_a_31_mer_is_sampled_in_any_context_or_in_none(text: str, before: str, every: int) -> None:
    alone = Counter(sample([text], every)[0])
    assert Counter(sample([before + text + before], every)[0]) >= alone
    assert sample([text.upper()], every) == sample([text.lower()], every)
    assert Counter(sample([reverse_complement(text)], every)[0]) == alone


@settings(deadline=None, max_examples=60)
@given(st.lists(st.text("ACGTN", max_size=120), max_size=6), st.sampled_from(RATES[:3]))
def test_no_31_mer_crosses_from_one_record_into_the_next(texts: list[str], every: int) -> None:
    values, counts = sample(texts, every)
    each = [sample([text], every) for text in texts]
    assert values == [value for found, _ in each for value in found]
    assert counts == [count for _, (count,) in each]


@pytest.mark.parametrize("every", [1, 64, 1024])
def test_the_tiles_and_pieces_in_which_records_come_do_not_matter(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(every)
    texts = [random_dna(rng, length, "ACGTACGTACGTACGTN") for length in (0, 5000, 30, 31, 70, 0, 9000, 64, 700, 3)]
    expected = sample(texts, every)
    monkeypatch.setattr(sketch_module, "_TILE", 300)
    assert sample(texts, every) == expected
    for room in (64, 100, 1000, 100_000):
        monkeypatch.setattr(Sketcher, "_ROOM", room)
        sketcher = Sketcher(every)
        for text in texts:
            cuts = sorted(rng.choices(range(len(text) + 1), k=3))
            for start, end in zip([0, *cuts], cuts, strict=False):
                sketcher.add(codes(text[start:end]), whole=False)
            sketcher.add(codes(text[cuts[-1] :]))
        values, counts = sketcher.finish()
        assert (values.tolist(), counts.tolist()) == expected
        assert (values.dtype, counts.dtype) == (np.uint64, np.uint32)


def test_letters_other_than_acgtu_break_a_31_mer() -> None:
    text = random_dna(random.Random(3), 61)
    for letter in CHARACTER.tokens[: CHARACTER.bases]:
        broken = text[:30] + letter + text[31:]
        expected = 31 if letter in "ACGTU" else 0
        assert len(sample([broken], 1)[0]) == expected, letter
    assert sample(["ACGU" * 20], 1) == sample(["ACGT" * 20], 1)


def test_homopolymers_and_short_repeats_are_in_no_sparse_sample() -> None:
    for unit in ("A", "C", "AC", "AG", "ATCG"):
        assert sample([unit * 400], 64) == ([], [0])


def test_a_rate_that_is_none_is_refused_and_those_chosen_are_rates() -> None:
    for every in (0, 2, 8, 100, 768):
        with pytest.raises(UsageError, match="the rates are 1, 4, 16, 64, 512"):
            sketch(codes("ACGT"), np.array([4]), every)
    sizes = [0, 10**6, 5 * 10**6, 3 * 10**7, 10**8, 3 * 10**9, 10**12, None]
    rates = [sampling_for(size) for size in sizes]
    assert rates == [1, 1, 4, 16, 64, 512, 16384, 512]
    assert [sampling_for(size, finer=True) for size in sizes] == [1, 1, 4, 16, 64, 64, 16384, 64]
    for size, rate in zip(sizes, rates, strict=True):
        Sketcher(rate)
        assert size is None or size / rate <= 1 << 26


def test_the_sampled_share_of_shared_31_mers_estimates_the_exact_one() -> None:
    (path,) = resolve_all(["builtin:human-cds"])
    texts = [record.bases.decode() for record in read(Input.of(path))][:800]
    rng = random.Random(0)
    some = [text for text in texts if rng.random() < 0.5]
    # The other half, with a tenth of the first mixed in and mutated here and there.
    mixed = [text for text in texts if text not in set(some)]
    for text in some[::10]:
        letters = list(text)
        for at in rng.sample(range(len(letters)), len(letters) // 60):
            letters[at] = rng.choice("ACGT")
        mixed.append("".join(letters))

    def share(every: int) -> tuple[float, int]:
        one, other = (set(sample(half, every)[0]) for half in (some, mixed))
        return len(one & other) / len(one), len(one)

    exact, _ = share(1)
    assert 0.03 < exact < 0.1
    for every in (4, 16, 64, 512):
        estimate, count = share(every)
        # 31-mers in a row are shared together: at most 60 bases between two changes, over 31 + 30 of them.
        deviation = (exact * (1 - exact) / count * min(30, max(1, 30 / every * 2))) ** 0.5
        assert abs(estimate - exact) < 4 * deviation, (every, estimate, exact)


# ---------------------------------------------------------------------------------------------------------- duplicates


def digest(text: str) -> bytes:
    whole = codes(text)
    return content_digest(lambda start, end: whole[start:end], len(text))


@given(st.text("ACGTNRYKMSWBDHV", max_size=200))
def test_a_digest_does_not_see_strand_case_or_u(text: str) -> None:
    expected = digest(text)
    assert digest(reverse_complement(text)) == digest(text.lower()) == digest(text.replace("T", "U")) == expected
    assert digest(reverse_complement(text).replace("T", "u")) == expected


def test_digests_of_different_sequences_differ() -> None:
    rng = random.Random(0)
    texts = {random_dna(rng, rng.randrange(12), "ACGTN") for _ in range(3000)} | {"A" * n for n in range(50)}
    canonical = {min(text, reverse_complement(text)) for text in texts}
    assert len({digest(text) for text in texts}) == len(canonical)


@pytest.mark.parametrize("piece", [7, 64, 1000])
def test_the_pieces_in_which_a_long_record_is_read_do_not_matter(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(piece)
    half = random_dna(rng, 1500)
    texts = [random_dna(rng, 3001, "ACGTN"), half + reverse_complement(half), half + "A" + reverse_complement(half)]
    texts += [half[:1499] + "G" + reverse_complement(half[:1499]), "AT" * 1000, "A" * 999]
    expected = [digest(text) for text in texts]
    monkeypatch.setattr(duplicates_module, "_PIECE", piece)
    assert [digest(text) for text in texts] == expected
    assert [digest(reverse_complement(text)) for text in texts] == expected


@pytest.mark.parametrize("at_once", [3, 10_000])
def test_the_first_of_each_is_kept_however_many_ranges_it_takes(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates_module, "_SORTED_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    different = rng.integers(0, 256, (300, 16), dtype=np.uint8)
    different[:40, :15] = different[0, :15]  # digests that differ in their last byte alone
    tables = [different[rng.integers(0, 300, size)] for size in (500, 0, 1, 200)]
    seen: set[bytes] = set()
    for table, repeats in zip(tables, later_copies(tables), strict=True):
        assert repeats.dtype == np.bool_
        expected = []
        for row in table:
            expected.append(row.tobytes() in seen)
            seen.add(row.tobytes())
        assert repeats.tolist() == expected
    assert later_copies([]) == []


def test_digests_may_be_a_memory_map(tmp_path: Path) -> None:
    table = np.memmap(tmp_path / "digests", np.uint8, "w+", shape=(4, 16))
    table[2] = 1
    assert later_copies([table])[0].tolist() == [False, True, False, True]
