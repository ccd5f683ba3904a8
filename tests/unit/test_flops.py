"""FLOPs are those that torch counts for the same computation, and attention counts the keys that are seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dnascale.config import load_config
from dnascale.data.masking import Masking
from dnascale.model.attention import BLOCKED_FROM, record_masks
from dnascale.model.flops import keys_per_token, record_lengths, train_flops_per_token
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.vocab import CHARACTER


@pytest.mark.parametrize("reach", [1, 8, 64])
def test_keys_per_token_equal_a_count_of_the_masks(reach: int) -> None:
    rng = np.random.default_rng(reach)
    tokens = rng.choice([0, 1, 2, 3, CHARACTER.sep], (3, 200), p=[0.24, 0.24, 0.24, 0.24, 0.04])
    masks = record_masks(torch.from_numpy(tokens), CHARACTER.sep, reach)
    lengths = record_lengths(tokens, CHARACTER.sep)
    assert lengths.sum() == tokens.size
    assert keys_per_token(lengths, None) == pytest.approx(float(masks["full_attention"].sum()) / tokens.size)
    assert keys_per_token(lengths, reach) == pytest.approx(float(masks["sliding_attention"].sum()) / tokens.size)


@pytest.mark.parametrize("context", [256, 1024])
@pytest.mark.parametrize("preset", ["nano", "book", "base"])
def test_flops_of_a_step_equal_those_torch_counts(preset: str, context: int) -> None:
    config = load_config(preset, ["data.path=D", "train.steps=1", f"model.context={context}", "model.layers=4"])
    masking = Masking(CHARACTER, **config.masking.model_dump())
    model = MaskedLanguageModel(build(config.model, CHARACTER), masking)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (1, context), dtype=np.uint8))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss, _ = model(tokens, torch.arange(1), 0)
        loss.backward()
    share = masking.count(context) / context
    ours = context * train_flops_per_token(config.model, 24, share, np.array([context]))
    whole, reach = 2, 64  # layers 0 and 3 of four see everything, the others 64 to each side
    seen = whole * context + (4 - whole) * keys_per_token(np.array([context]), reach)
    # torch counts what is computed: a dense mask whole, or three blocks for each block of a long window.
    computed = whole * context + (4 - whole) * (context if context < BLOCKED_FROM * reach else 3 * reach)
    difference = 12 * config.model.hidden_size * context * (computed - seen)
    assert ours + difference == pytest.approx(counter.get_total_flops(), rel=1e-3)


def test_the_design_figures_hold() -> None:
    """Hand counts for windows of one record: base 758 MFLOP a token at 1,024, book 38.6 at 512."""
    for preset, context, expected in (("base", 1024, 758e6), ("base", 8192, 1286e6), ("book", 512, 38.6e6)):
        config = load_config(preset, ["data.path=D", "train.steps=1", f"model.context={context}"])
        found = train_flops_per_token(config.model, 23, 1.0, np.array([context]))
        assert found == pytest.approx(expected, rel=0.01)
