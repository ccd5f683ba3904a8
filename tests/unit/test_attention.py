"""Every kernel gives what eager attention gives to each record alone, forward and backward, in one compiled graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from dnascale.config import CompileMode, ModelConfig
from dnascale.data.masking import Masking
from dnascale.model.attention import Attention
from dnascale.model.modernbert import MaskedLanguageModel, build
from dnascale.vocab import CHARACTER

MODEL = ModelConfig(
    hidden_size=32, layers=4, heads=2, intermediate_size=48, context=96, local_attention=16, global_every=3
)
REACH = MODEL.local_attention // 2
KERNELS = ["masks", "blocks", "tiles", "flash", "packed flash"]
#: Lengths of the records of each window; a separator follows each, and the window ends within or after the last.
WINDOWS = {
    "one record": [[96], [96]],
    "two records": [[40, 80], [95]],
    "around the reach of local layers": [[7, 8, 9, 10, 96], [16, 17, 18, 96]],
    "many short records": [[1] * 48, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]],
    "separators side by side": [[0, 0, 50, 0, 96], [0, 96]],
}


def emulated_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor,
    max_q: int, max_k: int, *, scale: float, window_size: tuple[int, int],
) -> torch.Tensor:  # fmt: skip
    """What torch's varlen_attn computes, one record at a time; torch has it for CUDA alone."""
    assert torch.nn.attention._cur_sdpa_kernel_backends() == [torch.nn.attention.SDPBackend.FLASH_ATTENTION]
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert cu_seq_q.dtype == torch.int32
    assert cu_seq_q[0] == 0
    assert cu_seq_q[-1] == len(query)
    assert int(cu_seq_q.diff().min()) >= 0
    assert int(cu_seq_q.diff().max()) <= max_q == max_k
    out = []
    for begin, end in pairwise(cu_seq_q.tolist()):
        q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))
        scores = q @ k.transpose(1, 2) * scale
        place = torch.arange(end - begin)
        if window_size != (-1, -1):
            far = (place[:, None] - place[None, :]).abs() > window_size[0]
            scores = scores.masked_fill(far, -torch.inf)
        out.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(out)


@pytest.fixture(autouse=True)
def _varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", emulated_varlen)
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def hf() -> Any:
    model = build(MODEL, CHARACTER).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)  # so that what is far away matters
    return model


def windows_of(lengths: list[list[int]], seed: int = 0) -> torch.Tensor:
    """int64 [B, context]."""
    rng = np.random.default_rng(seed)
    rows = []
    for records in lengths:
        parts = [part for n in records for part in (rng.choice([0, 1, 2, 3, 4], n), [CHARACTER.sep])]
        rows.append(np.resize(np.concatenate(parts), MODEL.context))
    return torch.from_numpy(np.stack(rows)).long()


def language_model(hf: Any, kernel: str, separate: bool = True) -> MaskedLanguageModel:
    hf.zero_grad(set_to_none=True)
    masking = Masking(CHARACTER, 0.2, 0.8, 0.1, reverse_complement=False, repeat_weight=1.0)
    model = MaskedLanguageModel(hf, masking, separate_records=separate)
    model.attention.kernel = kernel
    return model


def gradients(hf: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in hf.parameters()])


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("lengths", WINDOWS.values(), ids=WINDOWS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_packed_records_equal_eager_attention_over_each_record_alone(
    hf: Any, kernel: str, lengths: list[list[int]]
) -> None:
    tokens = windows_of(lengths)
    model = language_model(hf, kernel)
    packed = model.logits(tokens)
    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    (packed * weight).sum().backward()
    found = gradients(hf)

    hf.zero_grad(set_to_none=True)
    hf.set_attn_implementation("eager")
    try:
        for row in range(len(tokens)):
            edges = (tokens[row] == CHARACTER.sep).nonzero().flatten().tolist()
            cuts = sorted({0, MODEL.context, *edges, *(edge + 1 for edge in edges)})
            for begin, end in pairwise(cuts):
                alone = hf(input_ids=tokens[row : row + 1, begin:end]).logits
                assert close(packed[row, begin:end].detach(), alone[0].detach(), 1e-5)
                (alone[0] * weight[row, begin:end]).sum().backward()
    finally:
        hf.set_attn_implementation("dnascale")
    assert close(found, gradients(hf), 1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_without_separation_a_window_is_one_record(hf: Any, kernel: str) -> None:
    tokens = windows_of([[40, 80], [16, 17, 96]])
    model = language_model(hf, kernel, separate=False)
    with torch.no_grad():
        assert close(model.logits(tokens), hf(input_ids=tokens).logits, 1e-5)


@pytest.mark.parametrize("kernel", ["blocks", "tiles"])
@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 33, 95])
def test_blocks_of_queries_serve_windows_of_any_length(hf: Any, kernel: str, length: int) -> None:
    tokens = windows_of([[20, 80], [96]])[:, :length]
    for separate in (True, False):
        with torch.no_grad():
            expected = language_model(hf, "masks", separate).logits(tokens)
            assert close(language_model(hf, kernel, separate).logits(tokens), expected, 1e-5)


@pytest.mark.parametrize("cache", [1, 1 << 30])
def test_how_many_windows_fit_into_the_cache_changes_nothing(
    hf: Any, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = windows_of([[20, 80], [96], [16, 17, 18, 96], [1] * 48, [96]])
    found = []
    for kernel in ("masks", "tiles"):
        monkeypatch.setattr("dnascale.model.cpu._CACHE", cache)
        hf.zero_grad(set_to_none=True)
        logits = language_model(hf, kernel).logits(tokens)
        logits.square().sum().backward()
        found.append((logits.detach(), gradients(hf)))
    assert close(found[1][0], found[0][0], 1e-5)
    assert close(found[1][1], found[0][1], 1e-4)


@pytest.mark.parametrize("separate", [True, False])
def test_layers_that_are_hugging_faces_own_may_ask_for_tiles(hf: Any, separate: bool) -> None:
    own = build(MODEL, CHARACTER).eval()
    own.load_state_dict(hf.state_dict())
    tokens = windows_of([[40, 80], [95]])
    attention = Attention("tiles", CHARACTER.sep if separate else None, REACH)
    masks = {"full_attention": None, "sliding_attention": None}
    with torch.no_grad():
        layout = attention.lay_out(tokens, attention.room(2, 3))
        found = own.model(input_ids=tokens, attention_mask=masks, layout=layout).last_hidden_state
        expected = language_model(hf, "masks", separate).logits(tokens)
        assert close(own.decoder(own.head(found)), expected, 1e-5)


def test_scores_of_long_windows_are_never_there_all_at_once() -> None:
    from dnascale.model.cpu import tiles

    for length, heads in ((512, 12), (8192, 12), (65_536, 16)):
        found = tiles(length, None, heads)
        assert [one.queries.start for one in found] == [0, *(one.queries.stop for one in found[:-1])]
        assert found[-1].queries.stop == length
        largest = max(one.queries.stop - one.queries.start for one in found)
        assert largest == 64 or 2 * heads * largest * length <= torch.get_num_threads() << 22


def test_in_bf16_tiles_are_as_near_to_fp32_as_torchs_attention_is(hf: Any) -> None:
    tokens = windows_of([[40, 80], [95]])
    exact = language_model(hf, "masks").logits(tokens).detach()
    off = {}
    for kernel in ("masks", "tiles"):
        model = language_model(hf, kernel)
        model.autocast = torch.bfloat16
        off[kernel] = float((model.logits(tokens).detach() - exact).square().mean().sqrt())
    assert off["tiles"] < 1.5 * off["masks"]


def test_room_for_records_suffices_and_seldom_grows() -> None:
    attention = Attention("flash", CHARACTER.sep, REACH)
    rooms = [attention.room(64, separators) for separators in (1, 3, 0, 30, 32, 31, 200, 100, 5)]
    assert [room >= 64 + 2 * n for room, n in zip(rooms, (1, 3, 0, 30, 32, 31, 200, 100, 5), strict=True)].count(
        False
    ) == 1
    assert rooms[2] == 0  # no separator: each window is one record
    assert len(set(rooms)) == 3


def test_the_kernel_is_chosen_by_device_dtype_and_length() -> None:
    cpu = torch.device("cpu")
    assert Attention.choose(cpu, torch.bfloat16, 64, 256, 21, 64).kernel == "tiles"
    assert Attention.choose(cpu, torch.float32, 64, 256, 21, 64).kernel == "masks"
    assert Attention.choose(cpu, torch.float32, 64, 1024, 21, 64).kernel == "blocks"
    assert Attention.choose(torch.device("mps"), torch.float32, 64, 8192, 21, 64).kernel == "blocks"


@pytest.mark.parametrize(
    ("kernel", "autocast", "how", "graphs"),
    # By layers: masking, the first layer, which has no norm, the local layers, the last, and the loss.
    [
        ("masks", None, "whole", 1),
        ("blocks", torch.bfloat16, "whole", 1),
        ("blocks", torch.bfloat16, "layers", 5),
        ("tiles", torch.bfloat16, "whole", 1),
        ("tiles", torch.bfloat16, "layers", 5),
    ],
)
def test_the_step_is_compiled_once_and_without_breaks(
    hf: Any, kernel: str, autocast: torch.dtype | None, how: CompileMode, graphs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compiler(*args, backend="aot_eager", **options))
    model, eager = (language_model(copy.deepcopy(hf), kernel) for _ in range(2))
    model.autocast = eager.autocast = autocast
    torch._dynamo.reset()
    counters.clear()
    model.compile_step(how)
    for seed in range(3):
        tokens = windows_of([[30 + seed, 80], [11, 12, 80]], seed).to(torch.uint8)
        keys = torch.arange(2) + 2 * seed
        loss, sums = model(tokens, keys, 1)
        loss.backward()
        expected, expected_sums = eager(tokens, keys, 1)
        expected.backward()
        assert close(sums, expected_sums, 1e-2 if autocast else 1e-6)
        assert close(gradients(model.hf), gradients(eager.hf), 5e-2 if autocast else 1e-5)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


@pytest.mark.parametrize("how", ["layers", pytest.param("whole", marks=pytest.mark.slow)])
def test_each_length_and_masking_rate_is_compiled_once_and_recomputed_layers_need_no_other_graph(
    hf: Any, how: CompileMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compiler(*args, backend="aot_eager", **options))
    model = language_model(copy.deepcopy(hf), "blocks")
    model.recompute_layers()
    torch._dynamo.reset()
    counters.clear()
    model.compile_step(how)
    graphs = []
    for rate, length in ((0.2, 96), (0.2, 48), (0.4, 48), (0.2, 96)):
        model.masking = replace(model.masking, rate=rate)
        for seed in range(2):
            tokens = windows_of([[30, 79], [11, 12, 80]], seed)[:, :length].to(torch.uint8).contiguous()
            loss, sums = model(tokens, torch.arange(2), 1)
            loss.backward()
            assert 0 < float(sums[1]) <= 2 * model.masking.count(length)
        graphs.append(counters["stats"]["unique_graphs"])
    # By layers, another rate changes the masking and the loss alone.
    assert graphs == ([5, 10, 12, 12] if how == "layers" else [1, 2, 3, 3])
    assert not counters["graph_break"]


def test_evaluation_leaves_the_compiled_graphs_alone(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = language_model(copy.deepcopy(hf), "masks")
    monkeypatch.setattr(torch, "compile", lambda function, **_options: function)
    torch._dynamo.reset()
    counters.clear()
    model.compile_step("layers")
    with torch.no_grad():
        assert close(
            model.logits(windows_of([[40, 80]])), language_model(hf, "masks").logits(windows_of([[40, 80]])), 1e-6
        )
    assert not counters["stats"]


def test_layers_are_compiled_whole_under_ddp_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of itself torch cuts what is compiled within DDP where a megabyte of parameters has come together."""
    compiler, graphs = torch.compile, []

    def counting(graph: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda *args, **options: compiler(*args, backend=counting, **options))
    shape = MODEL.model_copy(update={"hidden_size": 256, "intermediate_size": 768, "layers": 3})
    model = language_model(build(shape, CHARACTER), "masks")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with torch._dynamo.config.patch(optimize_ddp=True):  # not by monkeypatch, which would remove the setting after
            model.compile_step("layers")
            tokens = windows_of([[40, 80], [95]]).to(torch.uint8)
            loss, _ = torch.nn.parallel.DistributedDataParallel(model)(tokens, torch.arange(2), 1)
            loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    assert len(graphs) == 4  # masking, the first layer, the other two, the loss
