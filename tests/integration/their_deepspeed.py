"""A training job of somebody else: transformers' model, DeepSpeed's engine and its own checkpoint."""

from pathlib import Path

CONFIG = {
    "vocab_size": 9, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "pad_token_id": 0, "bos_token_id": 7, "eos_token_id": 8, "cls_token_id": 7, "sep_token_id": 8, "max_position_embeddings": 64,
    "initializer_range": 0.3, "attn_implementation": "eager",
}  # fmt: skip


def run(folder: Path, stage: int) -> None:
    """Three steps; the checkpoint, and as expected.safetensors the fp32 weights as DeepSpeed itself gives them."""
    import os

    import deepspeed
    import torch
    from safetensors.torch import save_file
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(0)
    deepspeed.init_distributed("gloo")
    model = ModernBertForMaskedLM(ModernBertConfig(**CONFIG))
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"stage": stage},
    }
    engine, *_ = deepspeed.initialize(model=model, config=settings, model_parameters=model.parameters())
    generator = torch.Generator().manual_seed(int(os.environ["RANK"]))
    for _ in range(3):
        ids = torch.randint(9, (2, 64), generator=generator)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
    engine.save_checkpoint(str(folder))
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        if os.environ["RANK"] == "0":
            save_file(
                {name: value.detach().clone() for name, value in model.named_parameters()},
                folder / "expected.safetensors",
            )
