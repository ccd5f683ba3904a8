"""Scores of variants against loops that a reader can check, and against themselves on the other strand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dnascale.config import ModelConfig
from dnascale.errors import DataError, UsageError
from dnascale.evaluate.language_model import BASES, LanguageModel, load_model
from dnascale.evaluate.likelihood import Likelihood
from dnascale.evaluate.parts import open_parts
from dnascale.evaluate.variants.alleles import Allele, Status
from dnascale.evaluate.variants.run import compare, given_sequences, score
from dnascale.evaluate.variants.scores import Mode, ScoreOptions, flanks
from dnascale.model.modernbert import build
from dnascale.vocab import CHARACTER

CONTEXT = 31
RNG = np.random.default_rng(3)
SEQUENCE = bytes(RNG.choice(list(b"ACGT"), 90).astype(np.uint8))
_OTHER = bytes.maketrans(b"ACGT", b"TGCA")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with random weights, large enough that every position matters."""
    out = tmp_path_factory.mktemp("model")
    torch.set_num_threads(1)
    config = ModelConfig(hidden_size=32, layers=2, heads=2, intermediate_size=32, context=CONTEXT + 1)
    hf = build(config, CHARACTER, seed=1)
    with torch.no_grad():
        for weights in hf.parameters():
            weights.mul_(6) if weights.ndim > 1 else None
    hf.save_pretrained(out)
    CHARACTER.tokenizer(CONTEXT + 1).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_model(folder, "cpu", context=CONTEXT)


@pytest.fixture(scope="module")
def naive(folder: Path) -> Callable[[str, int, str], float]:
    """ln p of a base at a position of a window, hidden, by plain transformers, one window at a time, over A, C, G, T."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    hf, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def log_p(window: str, at: int | tuple[int, ...], base: str, where: int | None = None, hide: bool = True) -> float:
        hidden = (at,) if isinstance(at, int) else at
        text = "".join("[MASK]" if hide and i in hidden else letter for i, letter in enumerate(window))
        with torch.no_grad():
            logits = hf(**tokenizer(text, return_tensors="pt")).logits[0, hidden[0] if where is None else where]
        four = logits[tokenizer.convert_tokens_to_ids(list(BASES))].double().log_softmax(0)
        return float(four[BASES.index(base)])

    return log_p


def other_strand(sequence: bytes) -> bytes:
    return sequence[::-1].translate(_OTHER)


def scored(model: LanguageModel, alleles: list[Allele], sequence: bytes = SEQUENCE, **options: object) -> list[Allele]:
    settings = ScoreOptions(**options)  # type: ignore[arg-type]
    sequences = given_sequences({"s": sequence})
    order = compare(alleles, sequences, "it", settings, model.context)
    score(model, alleles, sequences, order, settings)
    return alleles


def snv(at: int, alt: str, ref: str = "") -> Allele:
    return Allele(1, "s", at, (ref or SEQUENCE[at : at + 1].decode()).encode(), alt.encode())


def every_snv(sequence: bytes) -> list[Allele]:
    return [
        Allele(1, "s", at, sequence[at : at + 1], alt.encode())
        for at in range(len(sequence))
        for alt in BASES
        if alt.encode() != sequence[at : at + 1]
    ]


def window_around(at: int, width: int = CONTEXT) -> tuple[str, int]:
    """The symmetric window, moved inwards at the ends, and the place in it: written down apart from the code."""
    first = min(max(at - width // 2, 0), len(SEQUENCE) - width)
    return SEQUENCE[first : first + width].decode(), at - first


@pytest.mark.parametrize("mode", ["masked", "wild-type"])
def test_every_substitution_is_what_a_loop_over_single_windows_gives(
    model: LanguageModel, naive: Callable[..., float], mode: Mode
) -> None:
    alleles = [allele for allele in every_snv(SEQUENCE) if allele.start % 7 == 0 or allele.start > 85]
    scored(model, alleles, mode=mode)
    for allele in alleles:
        window, at = window_around(allele.start)
        expected = 0.0
        for text, place, ref, alt in (
            (window, at, allele.ref, allele.alt),
            (
                other_strand(window.encode()).decode(),
                len(window) - 1 - at,
                other_strand(allele.ref),
                other_strand(allele.alt),
            ),
        ):
            hide = mode == "masked"
            expected += (naive(text, place, alt.decode(), hide=hide) - naive(text, place, ref.decode(), hide=hide)) / 2
        assert allele.llr == pytest.approx(expected, abs=1e-4)
    assert np.std([allele.llr for allele in alleles]) > 0.05  # of a model that says something


def test_bases_changed_together_are_hidden_together(model: LanguageModel, naive: Callable[..., float]) -> None:
    at = 40
    ref = SEQUENCE[at : at + 3].decode()
    alt = ("C" if ref[0] != "C" else "A") + ref[1] + ("G" if ref[2] != "G" else "T")
    (allele,) = scored(model, [snv(at, alt, ref)], both_strands=False)
    first = at - (CONTEXT - 3) // 2
    window = SEQUENCE[first : first + CONTEXT].decode()
    places = (at - first, at - first + 2)
    expected = sum(
        naive(window, places, alt[i], where=at - first + i) - naive(window, places, ref[i], where=at - first + i)
        for i in (0, 2)
    )
    assert allele.llr == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("ref_length", "alt"), [(1, "same"), (4, "A"), (1, "inserted")])
def test_pseudo_log_likelihood_is_the_sum_over_both_windows(
    model: LanguageModel, naive: Callable[..., float], ref_length: int, alt: str
) -> None:
    at = 44
    ref = SEQUENCE[at : at + ref_length].decode()
    alt = {"same": "A" if ref != "A" else "C", "A": ref[0], "inserted": ref + "GAT"}[alt]
    (allele,) = scored(model, [snv(at, alt, ref)], mode="pll", both_strands=False)
    start, old, new = allele.trimmed()
    flank = (CONTEXT - max(len(old), len(new))) // 2
    before = SEQUENCE[start - flank : start].decode()
    after = SEQUENCE[start + len(old) : start + len(old) + flank].decode()
    sums = []
    for codes in (old, new):
        window = before + CHARACTER.letters(codes) + after
        sums.append(sum(naive(window, i, letter) for i, letter in enumerate(window)))
    assert allele.llr == pytest.approx(sums[1] - sums[0], abs=1e-3)


@pytest.mark.parametrize("mode", ["masked", "wild-type"])
def test_scores_on_the_other_strand_are_the_same(model: LanguageModel, mode: Mode) -> None:
    here = scored(model, every_snv(SEQUENCE), mode=mode)
    there = [Allele(1, "s", len(SEQUENCE) - 1 - a.start, other_strand(a.ref), other_strand(a.alt)) for a in here]
    scored(model, there, other_strand(SEQUENCE), mode=mode)
    assert [a.llr for a in there] == pytest.approx([a.llr for a in here], abs=2e-6)
    # Without the mean over strands they differ: the test can fail.
    one = scored(model, every_snv(SEQUENCE), mode=mode, both_strands=False)
    assert max(abs(a.llr - b.llr) for a, b in zip(one, here, strict=True)) > 1e-2


def test_one_window_and_its_other_strand_give_equal_numbers_to_the_bit(model: LanguageModel) -> None:
    (here,) = scored(model, [snv(45, "A" if SEQUENCE[45:46] != b"A" else "C")])
    there = Allele(1, "s", len(SEQUENCE) - 46, other_strand(here.ref), other_strand(here.alt))
    scored(model, [there], other_strand(SEQUENCE))
    assert there.llr == here.llr


def test_windows_are_symmetric_and_move_inwards_at_the_ends() -> None:
    for length in (5, 30, 31, 100):
        for at in range(length):
            left, right = flanks(at, at + 1, 1, length, 31)
            assert at - left >= 0
            assert at + 1 + right <= length
            assert left + 1 + right == min(31, length)
            assert (right, left) == flanks(length - 1 - at, length - at, 1, length, 31)
    assert flanks(50, 51, 1, 100, 31) == (15, 15)


def test_alleles_are_trimmed_before_they_are_scored(model: LanguageModel) -> None:
    at = 30
    around = SEQUENCE[at - 1 : at + 2].decode()
    alt = "A" if around[1] != "A" else "C"
    plain, padded = scored(model, [snv(at, alt), snv(at - 1, around[0] + alt + around[2], around)])
    assert padded.llr == plain.llr


def test_positions_hidden_together_come_near_the_exact_scores(model: LanguageModel) -> None:
    exact = np.array([a.llr for a in scored(model, every_snv(SEQUENCE))])
    together = np.array([a.llr for a in scored(model, every_snv(SEQUENCE), together=2)])
    assert np.abs(together - exact).max() > 0
    assert np.corrcoef(together, exact)[0, 1] > 0.6


def test_lower_case_and_rna_are_the_same_bases(model: LanguageModel) -> None:
    alleles = every_snv(SEQUENCE)[:12]
    lower = [Allele(1, "s", a.start, a.ref.lower(), a.alt.lower()) for a in alleles]
    scored(model, alleles)
    scored(model, lower, SEQUENCE.lower())
    assert [a.llr for a in lower] == [a.llr for a in alleles]


def test_what_cannot_be_scored_is_named(model: LanguageModel) -> None:
    kept = SEQUENCE[10:11].decode()
    other = "A" if kept != "A" else "C"
    given = {
        "<DEL>": Status.symbolic, "*": Status.star, ".": Status.missing, "N": Status.letters, kept: Status.same,
        "G]s:5]": Status.symbolic, kept + "A" * 40: Status.long,
    }  # fmt: skip
    alleles = [snv(10, alt) for alt in given] + [snv(10, other)]
    scored(model, alleles)
    assert [a.status for a in alleles] == [*given.values(), Status.scored]
    deletion = snv(10, kept, SEQUENCE[10:13].decode())
    scored(model, [deletion], indels="skip")
    assert deletion.status is Status.indel


def test_alleles_of_another_genome_are_refused_unless_allowed(model: LanguageModel) -> None:
    def given() -> list[Allele]:
        wrong = [Allele(7, "s", 3, b"A" if SEQUENCE[3:4] != b"A" else b"C", b"G"), Allele(8, "s", 500, b"A", b"C")]
        return [*every_snv(SEQUENCE)[:50], *wrong]

    with pytest.raises(DataError, match=r"(?s)2 of 52 .*\n  line 7: s:4 .*another genome build"):
        scored(model, given())
    alleles, sequences = given(), given_sequences({"s": SEQUENCE})
    compare(alleles, sequences, "it", ScoreOptions(), model.context, allow_mismatches=True)
    assert [a.status for a in alleles[-2:]] == [Status.mismatch, Status.outside]


def test_a_chr_that_is_missing_names_the_option(model: LanguageModel) -> None:
    sequences = given_sequences({"chr1": SEQUENCE})
    alleles = [Allele(1, "1", 3, SEQUENCE[3:4], b"A" if SEQUENCE[3:4] != b"A" else b"C")]
    with pytest.raises(DataError, match="--ignore-chr"):
        compare(alleles, sequences, "it", ScoreOptions(), model.context)
    order = compare(alleles, sequences, "it", ScoreOptions(), model.context, ignore_chr=True)
    score(model, alleles, sequences, order, ScoreOptions(), ignore_chr=True)
    assert np.isfinite(alleles[0].llr)


def test_parts_that_are_done_are_not_computed_again(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnascale.evaluate.variants import run

    monkeypatch.setattr(run, "_PART", 60)
    out, sequences, options = tmp_path / "out.tsv", given_sequences({"s": SEQUENCE}), ScoreOptions()
    folder = open_parts(out, model, [], {})
    first = every_snv(SEQUENCE)
    order = compare(first, sequences, "it", options, model.context)
    answer, calls = run.Scoring.answer, 0

    def dies(scoring: run.Scoring) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return answer(scoring)

    monkeypatch.setattr(run.Scoring, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        score(model, first, sequences, order, options, folder)
    assert len(list(folder.glob("part-*"))) == 2
    score(model, first, sequences, order, options, folder)
    assert calls == 3 + 3  # five parts, two of them done
    again = scored(model, every_snv(SEQUENCE))
    assert [a.llr for a in first] == pytest.approx([a.llr for a in again], abs=2e-6)
    assert open_parts(out, model, [], {"mode": "pll"}) != folder


@pytest.mark.parametrize("together", [1, 4])
def test_variants_of_many_sequences_share_forwards_and_parts(
    model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    from dnascale.evaluate.variants import run

    texts = {f"s{n}": bytes(RNG.choice(list(b"ACGT"), 40 + n % 3).astype(np.uint8)) for n in range(60)}
    alleles = [
        replace(one, contig=name) for n, (name, text) in enumerate(texts.items()) for one in every_snv(text)[n : n + 2]
    ]
    alone = {"together": together, "both_strands": False}
    expected = [scored(model, [replace(one, contig="s")], texts[one.contig], **alone)[0].llr for one in alleles]
    asked = []
    log_p = LanguageModel.log_p
    monkeypatch.setattr(LanguageModel, "log_p", lambda self, *rest: asked.append(1) or log_p(self, *rest))
    options, sequences = ScoreOptions(**alone), given_sequences(texts)  # type: ignore[arg-type]
    order = compare(alleles, sequences, "it", options, model.context)
    score(model, alleles, sequences, order, options)
    assert len(asked) < 5
    assert [allele.llr for allele in alleles] == pytest.approx(expected, abs=2e-5)
    monkeypatch.setattr(run, "_PART", 7)
    score(model, alleles, sequences, order, options, folder := open_parts(tmp_path / "out.tsv", model, [], {}))
    assert len(list(folder.glob("part-*"))) <= 120 // 7 + 1
    assert [allele.llr for allele in alleles] == pytest.approx(expected, abs=2e-5)


def test_a_model_of_longer_tokens_is_refused(tmp_path: Path, folder: Path) -> None:
    import shutil

    from dnascale.vocab import load_vocabulary

    shutil.copytree(folder, tmp_path / "kmer")
    load_vocabulary("kmer:3").tokenizer(31).save_pretrained(tmp_path / "kmer")
    with pytest.raises(UsageError, match="each base is one token"):
        load_model(tmp_path / "kmer", "cpu")
    with pytest.raises(UsageError, match="is no model"):
        load_model(tmp_path, "cpu")


def test_special_tokens_of_a_foreign_tokenizer_are_put_around_the_window(tmp_path: Path) -> None:
    """A BERT with [CLS] and [SEP] around one token a base: equal to its own forward."""
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "g", "a", "t", "c", *("##" + base for base in "gatc")]
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=34, mask_token="[MASK]", unk_token="[UNK]", pad_token="[PAD]"
    )
    fast.save_pretrained(tmp_path)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=34,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = BertForMaskedLM(config).eval()
    hf.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "cpu")
    assert (loaded.before, loaded.after, loaded.context) == ((2,), (3,), 32)
    codes = CHARACTER.encode_bases(SEQUENCE[:20])[None]
    log_p = loaded.log_p(codes, np.array([[7, 9]]))
    ids = torch.tensor([[2, *(words.index(chr(letter).lower()) for letter in SEQUENCE[:20]), 3]])
    ids[0, [8, 10]] = 4
    with torch.no_grad():
        expected = hf(input_ids=ids).logits[0, [8, 10]][:, [6, 8, 5, 7]].log_softmax(1)
    np.testing.assert_allclose(log_p[0], expected.numpy(), atol=1e-5)
    assert loaded.hidden(codes).shape == (1, 20, 32)
    assert Likelihood(loaded).log_p(codes, np.array([[7]])).shape == (1, 1, 4)


def test_the_strands_are_those_that_the_model_was_trained_on_unless_told(model: LanguageModel) -> None:
    alt = "C" if SEQUENCE[30:31] != b"C" else "G"
    by_strands = {both: scored(model, [snv(30, alt)], both_strands=both)[0].llr for both in (True, False)}
    assert by_strands[True] != by_strands[False]
    for trained, expected in ((None, True), (True, True), (False, False)):
        known = replace(model, trained_on_both=trained)
        assert scored(known, [snv(30, alt)], both_strands=None)[0].llr == by_strands[expected]
        assert scored(known, [snv(30, alt)], both_strands=not expected)[0].llr == by_strands[not expected]
