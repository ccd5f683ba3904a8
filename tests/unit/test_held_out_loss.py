"""Held-out loss: every base hidden once, and the same sums as a naive evaluation, however it is dealt out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dnascale.config import ModelConfig
from dnascale.data.masking import Masking
from dnascale.data.read import WindowReader
from dnascale.data.shards import Dataset, Split
from dnascale.data.writer import ShardWriter
from dnascale.errors import DataError
from dnascale.evaluate.loss import GROUPS, HeldOutLoss, held_out_loss
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.vocab import CHARACTER

BLOCK, CONTEXT = 512, 48
CPU = torch.device("cpu")
U32 = 2**32 - 1
Logits = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many calls of a tiny model: threads that wait for each other would take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_dataset(folder: Path, stream: np.ndarray) -> Dataset:
    """One split `valid` in shards of one block."""
    writer = ShardWriter(folder, "valid", block_tokens=BLOCK, shard_blocks=1)
    while len(stream):
        piece, stream = stream[: writer.room], stream[writer.room :]
        writer.write(piece)
    split = Split(1, 1, 1, 1, 0, {}, writer.index())
    return Dataset(folder, "", "", CHARACTER, True, [], {}, {}, {}, {"valid": split}, block_tokens=BLOCK)


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    """Two shards, neither a multiple of the context: bases, some N, separators, lower case."""
    rng = np.random.default_rng(0)
    stored = rng.choice([0, 1, 2, 3, 4, CHARACTER.sep], 700, p=[0.3, 0.3, 0.2, 0.12, 0.05, 0.03])
    stored |= np.where((stored < 5) & (rng.random(700) < 0.3), 0x80, 0)
    return stored.astype(np.uint8)


@pytest.fixture(scope="module")
def reader(stream: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> WindowReader:
    return WindowReader(write_dataset(tmp_path_factory.mktemp("held-out"), stream), "valid", CONTEXT)


@pytest.fixture(scope="module")
def logits() -> Logits:
    """A tiny model with random weights, large enough to be wrong in a different way everywhere."""
    config = ModelConfig(hidden_size=32, layers=3, heads=2, intermediate_size=48, context=CONTEXT, local_attention=16)
    hf = build(config, CHARACTER).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return MaskedLanguageModel(hf, Masking(CHARACTER, 0.2, 0.8, 0.1, False, 1.0)).logits


def lowbias32(x: int) -> int:
    x = ((x ^ x >> 16) * 0x7FEB352D) & U32
    x = ((x ^ x >> 15) * 0x846CA68B) & U32
    return x ^ x >> 16


def group_of(window: int, position: int) -> int:
    state = lowbias32(lowbias32(window ^ 0xA4093822))
    return lowbias32((state + position * 0x9E3779B9) & U32) % GROUPS


def naive(stream: np.ndarray, logits: Logits, passes: int = GROUPS) -> dict[str, list[list[float]]]:
    """By base: nats and hits of each time it was hidden; one window and one group at a time."""
    scored: dict[str, list[list[float]]] = {base: [] for base in "ATCG"}
    window = 0
    for shard in np.split(stream & 0x7F, range(BLOCK, len(stream), BLOCK)):
        starts = list(range(0, len(shard) - CONTEXT + 1, CONTEXT))
        done = starts[-1] + CONTEXT
        for start in [*starts, len(shard) - CONTEXT] if done < len(shard) else starts:
            truth = shard[start : start + CONTEXT].tolist()
            for group in range(passes):
                at = [i for i, base in enumerate(truth) if base < 4 and group_of(window, i) == group]
                shown = [CHARACTER.mask if i in at else base for i, base in enumerate(truth)]
                with torch.no_grad():
                    found = logits(torch.tensor([shown]))[0].double()
                for i in at:
                    if start + i >= done or start in starts:
                        nats = -float(found[i].log_softmax(0)[truth[i]])
                        scored["ATCG"[truth[i]]].append([nats, float(int(found[i, :4].argmax()) == truth[i])])
            window += 1
    return scored


def result_of(scored: dict[str, list[list[float]]]) -> HeldOutLoss:
    every = [row for rows in scored.values() for row in rows]
    mean = np.mean(every, axis=0)
    by_base = {base: float(np.mean(rows, axis=0)[1]) for base, rows in scored.items()}
    return HeldOutLoss(float(mean[0]), float(mean[1]), by_base, len(every), len(every))


def same(found: HeldOutLoss, expected: HeldOutLoss) -> None:
    assert found.bases == expected.bases
    assert found.nats_per_base == pytest.approx(expected.nats_per_base, rel=1e-6)
    assert found.accuracy == pytest.approx(expected.accuracy, abs=1e-12)
    assert found.accuracy_by_base == pytest.approx(expected.accuracy_by_base, abs=1e-12)


@pytest.fixture(scope="module")
def expected(stream: np.ndarray, logits: Logits) -> HeldOutLoss:
    return result_of(naive(stream, logits))


@pytest.mark.parametrize("batch_windows", [1, 4, 1000])
def test_loss_and_accuracy_equal_a_naive_evaluation(
    reader: WindowReader, expected: HeldOutLoss, logits: Logits, batch_windows: int
) -> None:
    found = held_out_loss(logits, reader, CHARACTER, CPU, batch_windows)
    same(found, expected)
    assert found.bits_per_base == pytest.approx(found.nats_per_base / math.log(2))


def test_every_acgt_of_the_split_is_counted_exactly_once_tails_included(
    reader: WindowReader, stream: np.ndarray, logits: Logits
) -> None:
    assert len(stream) % CONTEXT
    assert BLOCK % CONTEXT
    assert held_out_loss(logits, reader, CHARACTER, CPU, 8).bases == int(((stream & 0x7F) < 4).sum())


def test_the_first_passes_alone_score_the_first_groups_alone(
    reader: WindowReader, stream: np.ndarray, logits: Logits
) -> None:
    same(held_out_loss(logits, reader, CHARACTER, CPU, 8, passes=2), result_of(naive(stream, logits, passes=2)))


def per_rank(reader: WindowReader, logits: Logits, world: int, **options: Any) -> tuple[torch.Tensor, list[int]]:
    """The sums over all ranks, each evaluated on its own, and how often each called the model."""
    sums: list[torch.Tensor] = []
    calls = [0] * world

    def reduce(of_rank: torch.Tensor) -> torch.Tensor:
        sums.append(of_rank.clone())
        return torch.ones_like(of_rank)

    for rank in range(world):

        def counting(input_ids: torch.Tensor, rank: int = rank) -> torch.Tensor:
            calls[rank] += 1
            return logits(input_ids)

        held_out_loss(counting, reader, CHARACTER, CPU, 3, rank=rank, world=world, reduce=reduce, **options)
    return torch.stack(sums).sum(dim=0), calls


@pytest.mark.parametrize("world", [2, 3, 8])
@pytest.mark.parametrize("options", [{}, {"max_windows": 5, "passes": 1}])
def test_the_sums_of_all_ranks_are_those_of_one_and_all_call_the_model_as_often(
    reader: WindowReader, logits: Logits, world: int, options: dict[str, Any]
) -> None:
    alone, _ = per_rank(reader, logits, 1, **options)
    shared, calls = per_rank(reader, logits, world, **options)
    assert shared.shape == (4, 4)
    assert shared.dtype == torch.float64
    torch.testing.assert_close(shared, alone, rtol=1e-6, atol=1e-6)
    assert torch.equal(shared[1:], alone[1:])  # hits and bases are counts
    assert len(set(calls)) == 1


def test_a_limit_takes_whole_windows_spread_over_the_split(
    reader: WindowReader, stream: np.ndarray, logits: Logits
) -> None:
    seen: list[torch.Tensor] = []

    def recording(input_ids: torch.Tensor) -> torch.Tensor:
        seen.append(input_ids)
        return logits(input_ids)

    done: list[int] = []
    limited = held_out_loss(recording, reader, CHARACTER, CPU, 2, max_windows=4, passes=1, progress=done.append)
    shown = torch.cat(seen)
    assert len(shown) == sum(done) == 4
    for row, start in ((0, 0), (-1, len(stream) - CONTEXT)):  # from the first window to the last tail
        truth = torch.from_numpy(stream[start : start + CONTEXT] & 0x7F).long()
        assert torch.equal(torch.where(shown[row] == CHARACTER.mask, truth, shown[row]), truth)
    assert 0 < limited.bases < 4 * CONTEXT
    whole = held_out_loss(logits, reader, CHARACTER, CPU, 2)
    assert held_out_loss(logits, reader, CHARACTER, CPU, 2, max_windows=10_000) == whole


def test_a_model_that_knows_the_split_scores_zero_and_one_that_knows_nothing_ln_23(
    reader: WindowReader, stream: np.ndarray
) -> None:
    uniform = held_out_loss(lambda ids: torch.zeros(*ids.shape, 23), reader, CHARACTER, CPU, 4)
    assert uniform.nats_per_base == pytest.approx(math.log(23))
    only_a = held_out_loss(lambda ids: torch.eye(23)[0].expand(*ids.shape, 23), reader, CHARACTER, CPU, 4)
    share = float(((stream & 0x7F) == 0).sum() / ((stream & 0x7F) < 4).sum())
    assert only_a.accuracy == pytest.approx(share)
    assert only_a.accuracy_by_base == {"A": 1.0, "T": 0.0, "C": 0.0, "G": 0.0}


def test_no_hidden_base_and_no_soft_mask_bit_is_shown_to_the_model(reader: WindowReader, stream: np.ndarray) -> None:
    shown: list[torch.Tensor] = []

    def recording(input_ids: torch.Tensor) -> torch.Tensor:
        shown.append(input_ids.clone())
        return torch.zeros(*input_ids.shape, 23)

    held_out_loss(recording, reader, CHARACTER, CPU, 1000)
    assert len(shown) == GROUPS
    assert max(int(batch.max()) for batch in shown) == CHARACTER.mask
    first = torch.stack([batch[0] for batch in shown])
    truth = torch.from_numpy(stream[:CONTEXT] & 0x7F).long()
    assert torch.equal((first == CHARACTER.mask).sum(dim=0), (truth < 4).long())
    assert torch.equal(torch.where(first == CHARACTER.mask, truth, first), truth.expand(GROUPS, -1))


def test_a_split_without_a_base_to_predict_is_a_data_error(tmp_path: Path, logits: Logits) -> None:
    nothing = np.full(200, CHARACTER.tokens.index("N"), dtype=np.uint8)
    reader = WindowReader(write_dataset(tmp_path, nothing), "valid", CONTEXT)
    with pytest.raises(DataError, match="no A, C, G or T to predict"):
        held_out_loss(logits, reader, CHARACTER, CPU, 4)
