"""Losses per base: the same bases whatever the tokens, and numbers that follow by hand from what a model says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.read import WindowReader, split_records
from dnascale.data.shards import Dataset
from dnascale.evaluate.loss import GROUPS, groups_for, held_out_loss
from dnascale.model.per_base import base_nats, letter_log_p
from dnascale.vocab import CHARACTER, Vocabulary, load_vocabulary

SPECS = ["character", "kmer:2", "kmer:3", "kmer:2:overlap", "kmer:3:overlap"]
CONTEXT = 50


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("fasta") / "some.fa"
    with path.open("w") as file:
        for number, length in enumerate(rng.integers(1, 300, 60)):
            letters = rng.choice(list("ACGTNR"), length, p=[0.3, 0.3, 0.2, 0.18, 0.01, 0.01])
            file.write(f">record{number}\n{''.join(letters)}\n")
    return path


@pytest.fixture(scope="module", params=SPECS)
def dataset(request: pytest.FixtureRequest, fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = tmp_path_factory.mktemp("data") / "data"
    return prepare([str(fasta)], out, PrepareOptions(valid=0.4, tokenizer=request.param))


def says_the_same_everywhere(probabilities: torch.Tensor) -> Any:
    return lambda ids: probabilities.log().expand(*ids.shape, -1)


def probabilities(vocabulary: Vocabulary) -> torch.Tensor:
    p = torch.rand(len(vocabulary), generator=torch.Generator().manual_seed(3)).double() + 0.1
    return p / p.sum()


def test_a_model_that_says_the_same_everywhere_has_the_loss_that_follows_by_hand(dataset: Dataset) -> None:
    vocabulary = dataset.vocabulary
    p = probabilities(vocabulary)
    result = held_out_loss(says_the_same_everywhere(p), WindowReader(dataset, "valid", CONTEXT), vocabulary, torch.device("cpu"), 8)  # fmt: skip
    nats, bases, tokens = 0.0, 0, 0
    for record in split_records(dataset, "valid"):
        for token in vocabulary.encode_codes(record).tolist():
            name = vocabulary.tokens[token]
            if set(name) <= set("ACGT"):
                if vocabulary.views > 1:
                    nats -= math.log(sum(float(p[i]) for i, t in enumerate(vocabulary.tokens) if t[0] == name[0]))
                    bases += 1
                else:
                    nats -= math.log(float(p[token]))
                    bases += len(name)
                tokens += 1
    assert (result.bases, result.tokens) == (bases, tokens)
    assert result.nats_per_base == pytest.approx(nats / bases, rel=1e-6)


def test_the_bases_that_are_scored_do_not_depend_on_the_tokens(dataset: Dataset) -> None:
    p = probabilities(dataset.vocabulary)
    reader = WindowReader(dataset, "valid", CONTEXT)
    result = held_out_loss(says_the_same_everywhere(p), reader, dataset.vocabulary, torch.device("cpu"), 8)
    assert result.bases == sum(dataset.split("valid").composition[base] for base in "ACGT")


def test_kmers_all_as_likely_cost_ln_4_a_base() -> None:
    for spec in ("kmer:6", "kmer:6:overlap"):
        vocabulary = load_vocabulary(spec)
        logits = torch.full((4, len(vocabulary)), -100.0)
        logits[:, vocabulary.first_long :] = 1.5
        labels = torch.tensor([vocabulary.first_long + n for n in (0, 17, 2000, 4095)])
        of_bases = base_nats(logits, labels, vocabulary)
        bases = torch.from_numpy(vocabulary.bases_per_token)[labels]
        assert torch.allclose(of_bases / bases, torch.full((4,), math.log(4)))


def test_a_letter_has_the_probability_of_all_kmers_that_begin_with_it_and_its_own() -> None:
    vocabulary = load_vocabulary("kmer:3:overlap")
    logits = torch.randn(5, len(vocabulary), generator=torch.Generator().manual_seed(0))
    p = logits.double().softmax(1)
    found = letter_log_p(logits, vocabulary).double().exp()
    for letter in range(4):
        ids = [i for i, token in enumerate(vocabulary.tokens) if token[0] == CHARACTER.tokens[letter]]
        assert len(ids) == 17
        assert torch.allclose(found[:, letter], p[:, ids].sum(1))


def test_an_oracle_is_right_everywhere_and_accuracy_by_base_is_told_where_tokens_are_bases(dataset: Dataset) -> None:
    """It is told the truth by the order in which evaluation asks."""
    vocabulary = dataset.vocabulary
    reader = WindowReader(dataset, "valid", CONTEXT)
    truth: list[torch.Tensor] = []
    read = reader.read

    def spying(windows: Any) -> torch.Tensor:
        truth.append(read(windows).long())
        return truth[-1].to(torch.uint8)

    reader.read = spying  # type: ignore[method-assign]

    def oracle(ids: torch.Tensor) -> torch.Tensor:
        return 50 * torch.nn.functional.one_hot(truth[-1], len(vocabulary)).float()

    result = held_out_loss(oracle, reader, vocabulary, torch.device("cpu"), 8)
    assert result.accuracy == 1.0
    assert result.nats_per_base < 1e-6
    assert set(result.accuracy_by_base) == (set("ACGT") if vocabulary.one_base_a_token else set())


@pytest.mark.parametrize("k", [2, 3, 6, 7])
def test_one_pass_hides_about_a_seventh_of_the_bases(k: int) -> None:
    from dnascale.data.masking import mask_group

    assert groups_for(load_vocabulary(f"kmer:{k}")) == groups_for(CHARACTER) == GROUPS
    vocabulary = load_vocabulary(f"kmer:{k}:overlap")
    tokens = torch.from_numpy(vocabulary.encode_codes(np.zeros(40_000, dtype=np.uint8)))[None, : 40_000 - k]
    shown, _ = mask_group(tokens, torch.tensor([5]), 0, groups_for(vocabulary), vocabulary)
    hidden = (shown[0] == vocabulary.mask).numpy()
    gone = np.logical_and.reduce([hidden[k - 1 - before : len(hidden) - before] for before in range(k)])
    assert 0.12 < gone.mean() < 0.16


@pytest.mark.parametrize("spec", ["character", "kmer:3", "kmer:6", "kmer:3:overlap"])
def test_training_is_one_graph_and_tells_the_nats_of_hidden_bases(spec: str) -> None:
    from dnascale.config import ModelConfig
    from dnascale.data.masking import Masking
    from dnascale.model.modernbert import MaskedLanguageModel, build

    vocabulary = load_vocabulary(spec)
    config = ModelConfig(hidden_size=32, layers=2, heads=2, intermediate_size=32, context=64, local_attention=16)
    masking = Masking(vocabulary, 0.3, 0.6, 0.2, True, 0.5)
    model = MaskedLanguageModel(build(config, vocabulary), masking)
    rng = np.random.default_rng(0)
    codes = (rng.integers(0, 4, (4, 600)) | (rng.random((4, 600)) < 0.4) << 7).astype(np.uint8)
    tokens = torch.from_numpy(np.stack([vocabulary.encode_codes(row)[:64] for row in codes]))
    keys = torch.arange(4)
    loss, sums = model(tokens, keys)
    batch = masking(tokens, keys, model.complement)
    with torch.no_grad():
        logits = model.logits(batch.input_ids)
        log_p = logits.gather(1, batch.positions[:, :, None].expand(-1, -1, logits.shape[2])).log_softmax(2)
    nats = bases = 0.0
    for row, column in batch.hidden.nonzero().tolist():
        name = vocabulary.tokens[int(batch.labels[row, column])]
        p = log_p[row, column].exp().tolist()
        if vocabulary.views > 1:
            nats -= math.log(sum(q for q, token in zip(p, vocabulary.tokens, strict=False) if token[0] == name[0]))
            bases += 1
        else:
            nats -= math.log(p[int(batch.labels[row, column])])
            bases += len(name)
    assert sums.tolist()[4:6] == pytest.approx([nats, bases], rel=1e-4)
    weighted = replace(masking, repeat_weight=1.0)
    _, unweighted = MaskedLanguageModel(model.hf, weighted)(tokens, keys)
    assert torch.equal(unweighted[4:6], sums[4:6])
    if spec == "character":
        assert torch.equal(sums[4:6], unweighted[2:4])
    if vocabulary.views == 1:
        assert float(sums[4]) == pytest.approx(float(unweighted[2]), rel=1e-6)
    whole = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    again, again_sums = whole(tokens, keys, model.room(tokens))
    assert torch.allclose(loss, again)
    assert torch.allclose(sums, again_sums, rtol=1e-4)
