"""The model: Hugging Face's ModernBertForMaskedLM, unchanged, with masking and loss around it.

`MaskedLanguageModel` is what engines wrap: stored tokens and window keys in, loss out. `export` takes `.hf`.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from dnascale.config import CompileMode, ModelConfig
from dnascale.data.masking import MaskedBatch, Masking
from dnascale.model import attention
from dnascale.model.attention import Attention, Layout
from dnascale.model.loss_groups import group_sums
from dnascale.model.per_base import base_nats
from dnascale.vocab import Vocabulary

if TYPE_CHECKING:
    from transformers import ModernBertConfig, ModernBertForMaskedLM


def modernbert_config(model: ModelConfig, vocabulary: Vocabulary) -> "ModernBertConfig":
    """Every special token id is set: the defaults (50281 to 50283) lie outside a small vocabulary."""
    from transformers import ModernBertConfig

    attention.register()
    return ModernBertConfig(
        vocab_size=len(vocabulary),
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        max_position_embeddings=model.context,
        local_attention=model.local_attention,
        initializer_range=model.initializer_range,
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": model.global_rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": model.local_rope_theta},
        },
        layer_types=[
            "sliding_attention" if layer % model.global_every else "full_attention" for layer in range(model.layers)
        ],
        pad_token_id=vocabulary.pad,
        bos_token_id=vocabulary.cls,
        eos_token_id=vocabulary.sep,
        cls_token_id=vocabulary.cls,
        classifier_pooling="mean",  # for whoever fine-tunes it: no token stands for the whole sequence
        sep_token_id=vocabulary.sep,
        attn_implementation=attention.NAME,
    )


def build(model: ModelConfig, vocabulary: Vocabulary, seed: int = 0) -> "ModernBertForMaskedLM":
    """A model with fresh fp32 weights, the same for the same seed on every rank."""
    from transformers import ModernBertForMaskedLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ModernBertForMaskedLM(modernbert_config(model, vocabulary))


def build_to_fill(model: ModelConfig, vocabulary: Vocabulary) -> "ModernBertForMaskedLM":
    """The same with zeros for weights, which a checkpoint will replace: drawing 150 million of them takes seconds."""
    from transformers import ModernBertForMaskedLM
    from transformers.initialization import no_init_weights

    with no_init_weights():
        hf = ModernBertForMaskedLM(modernbert_config(model, vocabulary))
    hf.tie_weights()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.zero_()
    return hf


class MaskedLanguageModel(nn.Module):
    """Masks a batch, runs the model, and returns the loss of the masked tokens."""

    complement: torch.Tensor
    bases_per_token: torch.Tensor

    def __init__(
        self,
        hf: "ModernBertForMaskedLM",
        masking: Masking,
        separate_records: bool = True,
        autocast: torch.dtype | None = None,
        weights: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        """`autocast`: dtype of the matrix products where it is not that of the weights. `weights`: dtype that an engine
        will give them. `device`: where the model will compute; by default where it is now.
        """
        super().__init__()
        attention.use(hf)  # one read from a folder has another, that would ignore our layout
        self.hf = hf
        self.masking = masking
        self.autocast = autocast
        self.attention = Attention.choose(
            device or hf.device,
            autocast or weights,
            hf.config.hidden_size // hf.config.num_attention_heads,
            hf.config.max_position_embeddings,
            masking.vocabulary.sep if separate_records else None,
            hf.config.local_attention // 2,
        )
        if (device or hf.device).type == "cpu":
            from dnascale.model import cpu

            cpu.adapt(hf)
        hf.model.embeddings.register_forward_hook(_as_autocast)
        self.register_buffer(
            "complement", torch.from_numpy(masking.vocabulary.complement_table).long(), persistent=False
        )
        self.register_buffer(
            "bases_per_token", torch.from_numpy(masking.vocabulary.bases_per_token).float(), persistent=False
        )

    def room(self, tokens: torch.Tensor) -> int:
        """What `forward` must know of tokens [B, S] before it runs; cheap where they are in host memory."""
        ids = tokens.view(torch.int16) if tokens.dtype == torch.uint16 else tokens  # uint16 has no comparison
        return self.attention.room(len(tokens), int((ids == self.masking.vocabulary.sep).sum()))

    def forward(
        self, tokens: torch.Tensor, keys: torch.Tensor, room: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens uint8 or uint16 [B, S], window keys int64 [B], `room(tokens)` -> (loss, sums).

        loss: sum of weighted cross-entropies in nats over B * K, whose mean over micro-batches and ranks is the
        mean over the global batch. sums: float32 [6 + 2 * groups], (weighted nats, weight) over all predicted tokens and over
        those shown as [MASK], and (nats, number) of the bases of the latter, not weighted, which compare with evaluation; then `group_sums`.
        """
        with self._precision(tokens):
            batch, layout = self._begin(tokens, keys, self.room(tokens) if room is None else room)
            return self._end(self._body(batch.input_ids, layout), batch)

    def recompute_layers(self) -> None:
        """From now on, what a layer keeps for the backward pass is computed again there. There is no dropout to repeat."""
        from torch.utils.checkpoint import checkpoint

        # Not by the public method, whose hook on the embeddings no graph may contain.
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        self.hf._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=again)

    def compile_step(self, how: CompileMode) -> None:
        """Compiles `forward` as one graph, or layer by layer.

        By layers, equal ones are compiled once, in seconds, and gradients are ready layer by layer, while others are still
        computed. As a whole it has the fewest launches, for small models, and takes minutes for deep ones.
        """
        # Another length or masking rate is another graph, and so is more room for records.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        if how == "whole":
            self.compile(fullgraph=True, dynamic=False)
            return
        # It would cut each layer in two for DDP, whose gradients arrive layer by layer as it is.
        torch._dynamo.config.optimize_ddp = False
        for layer in self.hf.model.layers:
            layer.compile(fullgraph=True, dynamic=False)
        self._begin = torch.compile(self._begin, fullgraph=True, dynamic=False)  # type: ignore[method-assign]
        self._end = torch.compile(self._end, fullgraph=True, dynamic=False)  # type: ignore[method-assign]

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """input_ids int64 [B, S] -> logits [B, S, V], records kept apart. Never compiled: batches have many shapes."""
        layout = self.attention.lay_out(input_ids, self.room(input_ids))
        with self._precision(input_ids), torch.compiler.set_stance("force_eager"):
            return self.hf.decoder(self.hf.head(self._body(input_ids, layout)))

    def _begin(self, tokens: torch.Tensor, keys: torch.Tensor, room: int) -> tuple[MaskedBatch, Layout]:
        batch = self.masking(tokens, keys, self.complement)
        return batch, self.attention.lay_out(batch.input_ids, room)

    def _body(self, input_ids: torch.Tensor, layout: Layout) -> torch.Tensor:
        """input_ids int64 [B, S] -> [B, S, H]."""
        # A mask for each kind of layer, even if none: otherwise transformers makes its own.
        masks = {"full_attention": None, "sliding_attention": None}
        return self.hf.model(input_ids=input_ids, attention_mask=masks, layout=layout).last_hidden_state

    def _end(self, hidden: torch.Tensor, batch: MaskedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The head runs on the predicted positions alone."""
        index = batch.positions[:, :, None].expand(-1, -1, hidden.shape[-1])
        logits = self.hf.decoder(self.hf.head(hidden.gather(1, index)))
        nats = functional.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten(), reduction="none")
        weights, shown_as_mask = batch.weights.flatten(), batch.hidden.flatten()
        weighted = nats * weights
        with torch.no_grad():
            of_hidden = weights * shown_as_mask
            sums = torch.stack(
                [
                    weighted.sum(), weights.sum(), (weighted * shown_as_mask).sum(), of_hidden.sum(),
                    # Not weighted, as in evaluation.
                    *self._base_sums(logits, nats, batch.labels.flatten(), shown_as_mask.float()),
                ]
            )  # fmt: skip
            sums = torch.cat([sums, group_sums(nats, batch)])
        return weighted.sum() / batch.labels.numel(), sums

    def _base_sums(
        self, logits: torch.Tensor, nats: torch.Tensor, labels: torch.Tensor, of: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(Nats, number) of the bases of tokens: logits [B, K, V], and nats, labels and 1 or 0 for which ones they are `of`, [B * K]."""
        vocabulary = self.masking.vocabulary
        if vocabulary.views > 1:
            nats = base_nats(logits.float().flatten(0, 1), labels, vocabulary)
        bases = of if vocabulary.one_base_a_token else of * self.bases_per_token[labels]
        return (nats * of).sum(), bases.sum()

    def _precision(self, on: torch.Tensor) -> AbstractContextManager[None]:
        return nullcontext() if self.autocast is None else torch.autocast(on.device.type, dtype=self.autocast)


def _as_autocast(_module: nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
    """Under autocast the residual stream takes the narrow dtype too: in fp32 its traffic would be twice as much."""
    kind = output.device.type
    return output.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else output
