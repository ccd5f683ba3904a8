"""Micro-batches recorded as CUDA graphs. On a CPU the recording is played: every operation is done again on the tensors it had then."""

import contextlib
import gc
import re
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jobs import command_line, dnascale, execute, metrics, numbers, train, train_words
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dnascale.data.shards import Dataset
from dnascale.errors import UsageError
from dnascale.train.engines import graphs
from dnascale.train.engines.graphs import Graphs

STAGES = (
    "train.steps=8", "checkpoint.every=4",
    "schedule.stages=[{tokens: 8192, context: 32}, {masking_rate: 0.4, global_batch_tokens: 4096}]",
)  # fmt: skip
Run = Callable[[], torch.Tensor]


class Operations(TorchDispatchMode):
    """Lists operations with the tensors and numbers that they were given, and does them again."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select")
        out = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, out))
        return out

    def repeat(self) -> None:
        for function, args, kwargs, out in self.done:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Played:
    """As a graph does, it keeps addresses and numbers as they were, and leaves the result in one place."""

    made = 0
    held: "weakref.ref[Operations] | None" = None

    def aside(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def record(self, run: Run) -> tuple[Callable[[], None], torch.Tensor]:
        Played.made += 1
        gc.collect()
        assert Played.held is None or Played.held() is None  # one recording at a time
        run()
        with Operations() as operations:
            sums = run()

        Played.held = weakref.ref(operations)

        @torch.no_grad()
        def replay() -> None:
            operations.repeat()

        return replay, sums

    def wait(self) -> None: ...


def with_played_graphs(words: list[str]) -> None:
    from dnascale.train import assemble

    graphs.Recorder = Played  # type: ignore[assignment,misc]
    assemble.require_graphs = lambda *_: None
    try:
        command_line(words)
    finally:
        print(f"recorded {Played.made} times", file=sys.stderr)


@pytest.mark.parametrize("words", [(), ("optimizer.name=muon", "train.recompute=layers", "train.precision=fp32")])
def test_a_run_of_graphs_is_the_run_without_to_the_bit(
    human_cds: Dataset, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Through stages, accumulation, and a resume."""
    expected = train(tmp_path / "plain", human_cds, *STAGES, *words)
    run = tmp_path / "graphs"
    command = train_words(run, human_cds, *STAGES, "train.cuda_graphs=true", *words)
    outcome = execute(with_played_graphs, command, DNASCALE_FAULT="step.forward:step=7:kill")
    assert outcome.code == -9
    assert numbers(metrics(run)) == numbers(expected)[:6]
    outcome = execute(with_played_graphs, command)
    assert outcome.code == 0, outcome.output
    assert "resumed" in outcome.output
    assert numbers(metrics(run)) == numbers(expected)
    assert {line["forward_seconds_max"] for line in metrics(run)} == {0.0}


def test_each_stage_and_the_timing_before_have_recordings_of_their_own(human_cds: Dataset, tmp_path: Path) -> None:
    words = train_words(tmp_path / "run", human_cds, *STAGES[1:], "train.minutes=0.02", "train.cuda_graphs=true")
    outcome = execute(with_played_graphs, words)
    assert outcome.code == 0, outcome.output
    # Of two stages each, and perhaps once more when the first window with several records comes.
    assert re.search("recorded [4-8] times", outcome.output)


@pytest.mark.parametrize("processes", [1, 2])
def test_graphs_are_refused_on_a_cpu(human_cds: Dataset, tmp_path: Path, processes: int) -> None:
    words = train_words(tmp_path / "run", human_cds, "train.steps=8", "train.cuda_graphs=true")
    outcome = dnascale(*words, processes=processes)
    assert outcome.code == 2
    assert outcome.error == "train.cuda_graphs=true is for CUDA, and this run is on cpu: leave it out."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("processes", "deepspeed"), [(2, None), (1, "zero2"), (1, None)])
def test_graphs_are_refused_where_processes_send_each_other_something(processes: int, deepspeed: str | None) -> None:
    config = SimpleNamespace(train=SimpleNamespace(cuda_graphs=True))
    accelerator: Any = SimpleNamespace(device=torch.device("cuda"), num_processes=processes, deepspeed_plugin=deepspeed)
    if processes == 1 and deepspeed is None:
        graphs.require_graphs(config, accelerator)  # type: ignore[arg-type]
        return
    with pytest.raises(UsageError, match=r"train.cuda_graphs=true is for one process with train.engine=plain"):
        graphs.require_graphs(config, accelerator)  # type: ignore[arg-type]


@pytest.fixture
def layer() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 2)


def micro_batch(layer: torch.nn.Linear) -> graphs.MicroBatch:
    def run(tokens: torch.Tensor, keys: torch.Tensor, room: int) -> torch.Tensor:
        loss = (layer(tokens.float()).square() * (1 + keys.view(-1, 1))).sum()
        loss.backward()
        return loss.detach()[None]

    return run


def batches(rooms: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randint(0, 5, (4, 3), generator=generator, dtype=torch.uint8), torch.arange(4) * n, room)
        for n, room in enumerate(rooms)
    ]


def test_what_is_recorded_in_the_middle_of_a_step_adds_to_its_gradients(
    layer: torch.nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "Recorder", Played)
    monkeypatch.setattr(Played, "made", 0)
    run, inputs = micro_batch(layer), batches((1, 0, 2, 1, 2))
    expected = [run(*batch) for batch in inputs]
    gradients = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
    layer.zero_grad()
    recorded = Graphs(run, layer.parameters())
    found = [recorded(*batch) for batch in inputs]
    assert Played.made == 2  # what has room for more records serves those with fewer
    assert torch.equal(torch.stack(found), torch.stack(expected))
    for p, gradient in zip(layer.parameters(), gradients, strict=True):
        assert p.grad is not None
        assert torch.equal(p.grad, gradient)
    recorded.zero_gradients()
    assert not any(p.grad.any() for p in layer.parameters() if p.grad is not None)


class Stale(Played):
    """Has kept what it was recorded with."""

    def record(self, run: Run) -> tuple[Callable[[], None], torch.Tensor]:
        sums = run()
        return lambda: None, sums


class Refuses(Played):
    cause = "operation not permitted when stream is capturing\nCUDA kernel errors might be ..."

    def record(self, run: Run) -> tuple[Callable[[], None], torch.Tensor]:
        raise RuntimeError(self.cause)


class Full(Refuses):
    cause = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"


@pytest.mark.parametrize(
    ("recorder", "error", "sentence"),
    [
        (Stale, UsageError, "computes something else on this device .* leave it out"),
        (Refuses, UsageError, r"does not run here \(RuntimeError: operation not permitted when stream is capturing\)"),
        (Full, torch.OutOfMemoryError, "CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_recording_is_compared_before_it_is_used(
    layer: torch.nn.Linear,
    recorder: type[Played],
    error: type[Exception],
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(graphs, "Recorder", recorder)
    with pytest.raises(error, match=sentence):
        Graphs(micro_batch(layer), layer.parameters())(*batches((1,))[0])


@pytest.mark.parametrize("which", ["tokens", "keys"])
def test_a_recording_that_does_not_read_its_inputs_is_seen(
    layer: torch.nn.Linear, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: graphs._Recorded, tokens: torch.Tensor, keys: torch.Tensor) -> None:
        for name, new in (("tokens", tokens), ("keys", keys)):
            if name != which:
                getattr(self, name).copy_(new)

    monkeypatch.setattr(graphs, "Recorder", Played)
    monkeypatch.setattr(graphs._Recorded, "read", read)
    with pytest.raises(UsageError, match="computes something else"):
        Graphs(micro_batch(layer), layer.parameters())(*batches((1, 1))[1])


def test_the_cause_is_said_and_not_what_the_end_of_a_failed_recording_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def recording(*_: object, **__: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def run() -> torch.Tensor:
        if runs.pop():
            raise RuntimeError("operation not permitted when stream is capturing")
        return torch.zeros(1)

    runs = [True, False, False, False]
    monkeypatch.setattr(torch.cuda, "Stream", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        graphs.Recorder().record(run)


def test_a_micro_batch_that_fails_by_itself_is_not_said_to_fail_for_graphs(
    layer: torch.nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "Recorder", Played)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Graphs(micro_batch(layer), layer.parameters())(torch.ones(4, 7, dtype=torch.uint8), torch.arange(4), 1)


def test_a_batch_that_is_not_finite_is_recorded_all_the_same(
    layer: torch.nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard leaves such a step out."""
    monkeypatch.setattr(graphs, "Recorder", Played)
    with torch.no_grad():
        layer.weight.fill_(torch.inf)
    assert Graphs(micro_batch(layer), layer.parameters())(*batches((1,))[0]).isnan().all()
