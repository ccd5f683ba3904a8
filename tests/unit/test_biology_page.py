"""What benchmarks/biology.py counts, against loops that a reader can check."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from dnascale.evaluate.baselines import ContextModel
from dnascale.evaluate.likelihood import reverse_complement
from dnascale.evaluate.variants.alleles import Allele, codes_of
from dnascale.evaluate.variants.saturate import _markov_ratios

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
genes = pytest.importorskip("biology_heldout")
places = pytest.importorskip("biology_windows")
RNG = np.random.default_rng(2)
STOPS = ("TAA", "TAG", "TGA")


def letters(codes: np.ndarray) -> str:
    return "".join("ATCG"[code] for code in codes)


def genes_of(count: int, codons: int) -> list[np.ndarray]:
    return [RNG.integers(0, 4, 3 * codons).astype(np.uint8) for _ in range(count)]


def test_the_markov_score_is_the_difference_of_two_whole_sequences() -> None:
    train, (sequence,) = genes_of(20, 100), genes_of(1, 30)
    chain = ContextModel(5).fit(train)

    def whole(codes: np.ndarray) -> float:
        return float(chain.log_probability(codes)[np.arange(len(codes)), codes].sum())

    alleles, expected = [], []
    for at in (0, 3, 40, 86, 89):
        changed = sequence.copy()
        changed[at] = (changed[at] + 1) % 4
        alleles.append(Allele(at, "x", at, letters(sequence)[at].encode(), letters(changed)[at].encode()))
        expected.append(whole(changed) - whole(sequence))
    np.testing.assert_allclose(_markov_ratios(alleles, {"x": sequence}, chain), expected, atol=1e-9)


def test_kmers_are_those_of_both_strands_and_of_no_other_letter() -> None:
    codes = RNG.integers(0, 4, 200).astype(np.uint8)
    codes[90] = 4
    text = letters(codes % 4)
    pairs = [(text[i : i + 31], text[i : i + 31][::-1].translate(str.maketrans("ACGT", "TGCA"))) for i in range(170)]
    inside = {min(pair) for i, pair in enumerate(pairs) if not i <= 90 < i + 31}
    assert len(places.kmers(codes)) == len(inside)
    other = reverse_complement(codes[:90])
    assert places.shared(other, places.kmers(codes)) == (60, 60)
    assert places.shared(RNG.integers(0, 4, 100).astype(np.uint8), places.kmers(codes)) == (0, 70)


def test_codon_and_hexamer_probabilities_are_what_counting_gives() -> None:
    train, (record,) = genes_of(30, 80), genes_of(1, 12)
    codon, hexamer = genes._codon_tables(train)
    for table, several in ((codon, False), (hexamer, True)):
        np.testing.assert_allclose(table.sum(axis=1), 1)
        found = genes._by_codon(record, table)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1)
        number = {letters([a, b, c]): 16 * a + 4 * b + c for a in range(4) for b in range(4) for c in range(4)}
        text = letters(record)
        for at in range(3, len(text)):
            first = at - at % 3
            row = table[number[text[first - 3 : first]] if several else 0]
            p = [row[number[text[first:at] + base + text[at + 1 : first + 3]]] for base in "ACGT"]
            np.testing.assert_allclose(np.exp(found[at]), np.array(p) / sum(p))


def test_stops_are_counted_in_each_frame() -> None:
    record = codes_of(b"ATGTATCAATGGCGATTATAG")
    log_p = np.log(RNG.dirichlet(np.ones(4), len(record)))
    frames: list[list[float]] = [[], [], []]
    text = letters(record)
    for start in range(len(text) - 5):
        for place in range(3):
            for base in "ACGT":
                changed = text[start : start + place] + base + text[start + place + 1 : start + 3]
                if base != text[start + place] and changed in STOPS:
                    frames[start % 3].append(math.exp(log_p[start + place]["ACGT".index(base)]))
    found = genes.stop_probability(genes.HeldOut([record], {"x": [log_p]}), "x")
    np.testing.assert_allclose([one.value for one in found], [np.mean(values) for values in frames])


def test_translated_exons_leave_out_what_is_not_translated(tmp_path: Path) -> None:
    import gzip

    with gzip.open(tmp_path / "a.gz", "wt") as out:
        out.write("chr20\t100\t400\tname\t0\t+\t150\t320\t0\t3\t60,20,100,\t0,100,200,\n")
    assert places.exons(tmp_path / "a.gz", True) == [("chr20", 150, 160), ("chr20", 200, 220), ("chr20", 300, 320)]
    assert places.exons(tmp_path / "a.gz", False) == [("chr20", 100, 160), ("chr20", 200, 220), ("chr20", 300, 400)]


def test_every_base_is_predicted_once_and_hidden_when_it_is() -> None:
    class Counts:
        """Gives the number of hidden bases of its window, and which base was asked."""

        class model:
            context = 50

        def log_p(self, codes: np.ndarray, positions: np.ndarray) -> np.ndarray:
            assert all(len(set(row)) >= len(row) - 1 for row in positions)
            assert set(positions.ravel()) == set(range(codes.shape[1]))
            return np.broadcast_to(
                np.take_along_axis(codes, positions, 1)[..., None].astype(float), (*positions.shape, 4)
            )

    (record,) = genes_of(1, 40)
    np.testing.assert_array_equal(genes.predict(Counts(), record, 0)[:, 0], record)


def test_an_interval_that_rounding_turned_round_is_still_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import biology_figures

    from dnascale.evaluate.statistics import Estimate

    turned = Estimate(1.0, 1.0 + 1e-9, 1.0)
    biology_figures.losses(
        {"model": (Estimate(0.9, 0.8, 1.0), turned), "uniform": (turned, turned)}, tmp_path / "a.png"
    )
    assert (tmp_path / "a.png").stat().st_size
