"""The model: records in one window do not leak, and losses and gradients are those of a naive computation."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from dnascale.config import ModelConfig, load_config
from dnascale.data.masking import Masking
from dnascale.errors import UsageError
from dnascale.model.attention import record_masks
from dnascale.model.modernbert import MaskedLanguageModel, build, modernbert_config
from dnascale.vocab import CHARACTER

LOCAL = 16  # the local layers see 8 tokens to each side
TINY = ModelConfig(
    hidden_size=32, layers=4, heads=2, intermediate_size=48, context=96, local_attention=LOCAL, global_every=3
)
#: Around the local window, and 1.
LENGTHS = [[1, 2, 7, 8, 9, 10], [16, 17, 18, 30], [15, 1, 1, 64], [40], [33, 8, 34]]


def recipe(**changes: Any) -> Masking:
    values = {"rate": 0.2, "replace_with_mask": 0.8, "replace_with_random": 0.1}
    return Masking(CHARACTER, **({**values, "reverse_complement": False, "repeat_weight": 1.0} | changes))


def strong(seed: int = 0) -> Any:
    """A tiny model whose weights are large enough for what is far away to matter, the same with every transformers."""
    hf = build(TINY, CHARACTER, seed).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in hf.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.12, generator=generator)
    return hf


@pytest.fixture(scope="module")
def hf() -> Any:
    return strong()


@pytest.fixture
def model(hf: Any) -> MaskedLanguageModel:
    hf.zero_grad(set_to_none=True)
    return MaskedLanguageModel(hf, recipe())


def bases(length: int, seed: int) -> torch.Tensor:
    """One record as the model sees it: bases, some N, some masked."""
    rng = np.random.default_rng([length, seed])
    return torch.from_numpy(rng.choice([0, 1, 2, 3, 4, CHARACTER.mask], length, p=[0.2] * 4 + [0.1] * 2))


def pack(lengths: list[int], seed: int = 0) -> tuple[torch.Tensor, list[torch.Tensor], list[slice]]:
    """Records with a separator after each, as a window [1, S]; the records; where they stand."""
    records = [bases(length, seed + i) for i, length in enumerate(lengths)]
    separator = torch.tensor([CHARACTER.sep])
    window = torch.cat([part for record in records for part in (record, separator)])[None]
    ends = np.cumsum([0, *(length + 1 for length in lengths)]).tolist()
    return window, records, [slice(begin, end - 1) for begin, end in pairwise(ends)]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


# --- configuration ---


def test_no_special_id_lies_outside_the_vocabulary_and_layers_are_as_configured() -> None:
    config = modernbert_config(TINY, CHARACTER)
    ids = {key: value for key, value in config.to_dict().items() if key.endswith("_token_id") and value is not None}
    assert set(ids) >= {"pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"}
    assert all(0 <= value < len(CHARACTER) for value in ids.values())
    assert config.vocab_size == 23
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    assert config.local_attention == LOCAL
    assert config.rope_parameters["full_attention"]["rope_theta"] == 160_000.0
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10_000.0


def test_a_rotary_base_below_one_turns_by_a_codon_every_three_tokens() -> None:
    model = TINY.model_copy(update={"hidden_size": 128, "global_rope_theta": 0.2487})
    rotary = build(model, CHARACTER).model.rotary_emb
    turns = rotary.full_attention_inv_freq
    assert float((turns - 2 * torch.pi / 3).abs().min()) < 1e-4
    assert (float(turns.min()), float(turns.max())) == (1.0, pytest.approx(0.2487 ** (-31 / 32)))
    assert float(rotary.sliding_attention_inv_freq.max()) == 1.0


def test_the_presets_have_the_sizes_they_state() -> None:
    sizes = {}
    for preset in ("nano", "mini", "book", "small", "base", "large"):
        settled = load_config(preset, ["data.path=D", "train.steps=1"])
        with torch.device("meta"):
            hf = build(settled.model, CHARACTER)
        sizes[preset] = sum(parameter.numel() for parameter in hf.parameters())
    assert sizes["book"] == 5_318_935
    assert sizes["nano"] == pytest.approx(0.7e6, rel=0.1)
    assert sizes["mini"] == 2_255_831
    assert sizes["small"] == 17_861_015
    assert sizes["base"] == pytest.approx(110e6, rel=0.02)
    assert sizes["large"] == pytest.approx(345e6, rel=0.02)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, other = build(TINY, CHARACTER, 5), build(TINY, CHARACTER, 5)
    assert torch.equal(torch.rand(3), expected)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(one.model.embeddings.tok_embeddings.weight, build(TINY, CHARACTER, 6).decoder.weight)


# --- attention ---


def test_masks_equal_a_definition_token_by_token() -> None:
    rng = random.Random(0)
    tokens = torch.tensor([[rng.choice([0, 1, 2, CHARACTER.sep]) for _ in range(40)] for _ in range(5)])
    tokens[4] = 0
    masks = record_masks(tokens, CHARACTER.sep, LOCAL // 2)
    for row, window in enumerate(tokens.tolist()):
        for i in range(40):
            for j in range(40):
                between = window[min(i, j) : max(i, j) + 1]
                visible = i == j or CHARACTER.sep not in between
                assert bool(masks["full_attention"][row, 0, i, j]) == visible
                assert bool(masks["sliding_attention"][row, 0, i, j]) == (visible and abs(i - j) <= LOCAL // 2)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_records_packed_in_a_window_give_the_logits_of_each_record_alone(
    model: MaskedLanguageModel, lengths: list[int]
) -> None:
    window, records, places = pack(lengths)
    with torch.no_grad():
        packed = model.logits(window)[0]
        for record, place in zip(records, places, strict=True):
            alone = model.hf(input_ids=record[None]).logits[0]
            assert relative(packed[place], alone) < 1e-5


@pytest.mark.parametrize("lengths", LENGTHS[:3])
def test_records_packed_in_a_window_give_the_gradients_of_each_record_alone(
    model: MaskedLanguageModel, lengths: list[int]
) -> None:
    window, records, places = pack(lengths)

    def loss(logits: torch.Tensor, record: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits, record.flip(0), reduction="sum")

    packed = model.logits(window)[0]
    sum(loss(packed[place], record) for record, place in zip(records, places, strict=True)).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.hf.named_parameters()}
    model.hf.zero_grad()
    for record in records:
        loss(model.hf(input_ids=record[None]).logits[0], record).backward()
    for name, parameter in model.hf.named_parameters():
        assert relative(found[name], parameter.grad) < 1e-4, name


def test_without_separation_records_do_leak_so_that_the_tests_above_can_fail(hf: Any) -> None:
    window, records, places = pack([30, 30])
    joined = MaskedLanguageModel(hf, recipe(), separate_records=False)
    with torch.no_grad():
        assert relative(joined.logits(window), hf(input_ids=window).logits) < 1e-6
        alone = hf(input_ids=records[1][None]).logits[0]
        assert relative(joined.logits(window)[0, places[1]], alone) > 0.05


def test_a_window_of_one_record_equals_the_plain_forward_of_transformers(model: MaskedLanguageModel) -> None:
    window = torch.stack([bases(TINY.context, seed) for seed in range(3)])
    with torch.no_grad():
        ours = model.logits(window)
        assert relative(ours, model.hf(input_ids=window).logits) < 1e-5
        eager = strong()
        eager.set_attn_implementation("eager")
        assert relative(ours, eager(input_ids=window, attention_mask=torch.ones_like(window)).logits) < 1e-5


def test_a_local_layer_reaches_exactly_half_the_local_attention_to_each_side() -> None:
    hf = build(TINY.model_copy(update={"layers": 2, "global_every": 2}), CHARACTER)
    with torch.no_grad():
        hf.model.layers[0].attn.Wo.weight.zero_()  # the global layer passes nothing between tokens
        window = bases(60, 0)[None]
        other = window.clone()
        other[0, 30] = (window[0, 30] + 1) % 4
        model = MaskedLanguageModel(hf, recipe())
        changed = (model.logits(window) != model.logits(other)).any(dim=-1)[0].nonzero().flatten().tolist()
    assert changed == list(range(30 - LOCAL // 2, 30 + LOCAL // 2 + 1))


# --- loss ---


def training_windows(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Stored tokens with separators and soft-mask bits, the last window with almost no bases; window keys."""
    rng = np.random.default_rng(seed)
    stored = rng.choice([0, 1, 2, 3, 4, CHARACTER.sep], (count, 64), p=[0.23, 0.23, 0.23, 0.23, 0.04, 0.04])
    stored |= np.where((stored < 5) & (rng.random(stored.shape) < 0.3), 0x80, 0)
    stored[-1, 5:] = CHARACTER.tokens.index("N")
    return torch.from_numpy(stored.astype(np.uint8)), torch.from_numpy(rng.integers(0, 2**63, count))


def test_loss_and_sums_equal_a_naive_computation_from_the_full_logits(hf: Any) -> None:
    model = MaskedLanguageModel(hf, recipe(repeat_weight=0.25, reverse_complement=True))
    tokens, keys = training_windows(6)
    with torch.no_grad():
        loss, sums = model(tokens, keys)
        batch = model.masking(tokens, keys, model.complement)
        log_p = model.logits(batch.input_ids).double().log_softmax(dim=-1)
    weighted = weights = hidden_weighted = hidden_weights = of_bases = bases = 0.0
    for row in range(6):
        for k, at in enumerate(batch.positions[row].tolist()):
            weight = float(batch.weights[row, k])
            nats = -float(log_p[row, at, batch.labels[row, k]])
            weighted += weight * nats
            weights += weight
            if batch.hidden[row, k]:
                hidden_weighted += weight * nats
                hidden_weights += weight
                of_bases += nats
                bases += 1
    assert 0 < hidden_weights < weights < batch.labels.numel()
    assert float(loss) == pytest.approx(weighted / batch.labels.numel(), rel=1e-5)
    assert sums[:6].tolist() == pytest.approx(
        [weighted, weights, hidden_weighted, hidden_weights, of_bases, bases], rel=1e-5
    )


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_the_mean_over_micro_batches_has_the_gradient_of_the_whole_batch(
    model: MaskedLanguageModel, micro_batches: int
) -> None:
    tokens, keys = training_windows(8)
    whole, _ = model(tokens, keys)
    whole.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.hf.named_parameters()}
    model.hf.zero_grad()
    total = 0.0
    for part in range(micro_batches):
        rows = slice(part * 8 // micro_batches, (part + 1) * 8 // micro_batches)
        loss, _ = model(tokens[rows], keys[rows])
        (loss / micro_batches).backward()
        total += float(loss.detach()) / micro_batches
    assert total == pytest.approx(float(whole.detach()), rel=1e-5)
    for name, parameter in model.hf.named_parameters():
        assert relative(parameter.grad, expected[name]) < 1e-4, name


def test_a_window_without_a_base_gives_no_loss_and_no_nan(model: MaskedLanguageModel) -> None:
    tokens = torch.full((2, 64), CHARACTER.sep, dtype=torch.uint8)
    loss, sums = model(tokens, torch.arange(2))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert sums.tolist() == [0.0] * len(sums)
    assert all(torch.isfinite(p.grad).all() for p in model.hf.parameters() if p.grad is not None)


def test_nothing_is_random_in_training_mode() -> None:
    model = MaskedLanguageModel(strong(), recipe())
    tokens, keys = training_windows(4)
    with torch.no_grad():
        evaluated = model.eval()(tokens, keys)[0]
        assert torch.equal(model.train()(tokens, keys)[0], evaluated)


def test_bf16_autocast_stays_close_and_sums_in_fp32() -> None:
    hf = build(TINY, CHARACTER)
    tokens, keys = training_windows(4)
    with torch.no_grad():
        loss, sums = MaskedLanguageModel(hf, recipe(), autocast=torch.bfloat16)(tokens, keys)
        expected, _ = MaskedLanguageModel(hf, recipe())(tokens, keys)
    assert loss.dtype == sums.dtype == torch.float32
    assert float(loss) == pytest.approx(float(expected), rel=0.01)


def test_a_fresh_model_scores_about_a_guess_among_all_tokens() -> None:
    model = MaskedLanguageModel(build(TINY, CHARACTER), recipe())
    tokens, keys = training_windows(8)
    with torch.no_grad():
        _, sums = model(tokens, keys)
    assert float(sums[0] / sums[1]) == pytest.approx(np.log(23), abs=0.3)


def test_a_model_read_from_a_folder_keeps_records_apart_too(tmp_path: Path) -> None:
    built = strong()
    built.save_pretrained(tmp_path)
    read = AutoModelForMaskedLM.from_pretrained(tmp_path)
    tokens = torch.tensor([[0, 1, 2, CHARACTER.sep, 3, 2, 1, 0] * (TINY.context // 8)])
    with torch.no_grad():
        expected = MaskedLanguageModel(built, recipe()).logits(tokens)
        assert torch.equal(MaskedLanguageModel(read, recipe()).logits(tokens), expected)


def test_a_transformers_that_keeps_its_own_attention_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = strong()
    built.save_pretrained(tmp_path)
    read = AutoModelForMaskedLM.from_pretrained(tmp_path)
    monkeypatch.setattr(type(read), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(UsageError, match="would not be kept apart"):
        MaskedLanguageModel(read, recipe())
