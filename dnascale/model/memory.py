"""How much memory a model takes, estimated: which micro-batch fits a device, and which engine.

Weights, gradients and both AdamW moments in fp32 are 16 bytes a parameter. Activations, in bf16 and compiled by layers, are
2 L (10.6 H + 2.8 I) bytes a token for L layers of width H and an MLP of I. Both coefficients come from two runs on an H200 (base
at 65,536 tokens: 34.6 GB; large at 32,768: 38.8 GB; docs/benchmarks/step.md), not from a model of the kernels: an estimate.
"""

from dnascale.config import ModelConfig

#: Of a device's memory; the rest is for the CUDA context, the allocator's gaps and communication buffers.
_USABLE = 0.8


def parameters(model: ModelConfig) -> int:
    """Parameters of the layers, which is nearly all of them: the vocabulary is small."""
    hidden, inner = model.hidden_size, model.intermediate_size
    return model.layers * (4 * hidden * hidden + 3 * hidden * inner + 2 * hidden) + hidden * hidden


def state_parts(model: ModelConfig, engine: str, processes: int) -> dict[str, float]:
    """Bytes of weights, gradients and optimizer (its fp32 weights, where the others are bf16, and moments) on each device."""
    whole = parameters(model)
    if engine == "plain":
        return {"weights": 4 * whole, "gradients": 4 * whole, "optimizer": 8 * whole}
    stage = int(engine.removeprefix("zero")[0])
    return {
        "weights": 2 * whole / (processes if stage == 3 else 1),
        "gradients": 2 * whole / (processes if stage >= 2 else 1),
        "optimizer": 0 if "_" in engine else 12 * whole / processes,  # offloaded, or divided
    }


def state_bytes(model: ModelConfig, engine: str, processes: int) -> float:
    """Bytes of weights, gradients and moments on each device."""
    return sum(state_parts(model, engine, processes).values())


def token_bytes(model: ModelConfig, flash: bool, recompute: bool = False) -> float:
    """Bytes of activations a token of the micro-batch. Without flash attention, global layers keep their scores too.

    With `recompute`, those of one layer, and what goes into each, in fp32: not measured.
    """
    layers, with_scores = (1, 1) if recompute else (model.layers, model.global_layers)
    begins = 4 * model.layers * model.hidden_size if recompute else 0
    inner = 2 * layers * (10.6 * model.hidden_size + 2.8 * model.intermediate_size)
    if flash:
        return begins + inner
    return begins + 2 * inner + 8 * with_scores * model.heads * model.context  # fp32: twice the bytes


def token_bytes_on_cpu(model: ModelConfig, fp32: bool) -> float:
    """Bytes of activations a token that a forward pass keeps for the backward pass on CPUs, about.

    In fp32 some 16 values a channel and layer (norms, query, key and value before and after the rotation, attention, sums) and 5 a
    channel of the gated unit; in bf16, where most of it is computed again, 7 and 4.5, fitted to rows of docs/benchmarks/cpu.jsonl. A mask
    of the window is kept once, of bytes or of bf16 for queries and keys of each kind of layer.
    """
    hidden, inner = model.layers * model.hidden_size, model.layers * model.intermediate_size
    return 64 * hidden + 20 * inner + model.context if fp32 else 13.7 * hidden + 8.9 * inner + 21.4 * model.context


def tokens_that_fit(
    model: ModelConfig, memory: int, engine: str, processes: int, flash: bool, recompute: bool = False
) -> int:
    """Tokens of the largest micro-batch on a device with `memory` bytes, a multiple of the context; 0 if none fits."""
    free = _USABLE * memory - state_bytes(model, engine, processes)
    return max(0, int(free / token_bytes(model, flash, recompute)) // model.context * model.context)
