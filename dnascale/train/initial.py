"""Weights to begin with that another run, or somebody else, has trained: model.init_from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnascale.errors import UsageError, first_line
from dnascale.vocab import Vocabulary

if TYPE_CHECKING:
    import torch

    from dnascale.train.engines import Engine

_EMBEDDING, _BIAS = "model.embeddings.tok_embeddings.weight", "decoder.bias"  # a row, and a value, a token
#: Less than this share of the parameters found is a mistake, and no start.
_LEAST = 0.5


@dataclass(frozen=True)
class Source:
    """fp32 weights by Hugging Face name, the tokens that the rows of the embedding stand for, and how positions turn them."""

    where: str
    weights: "dict[str, torch.Tensor]"
    tokens: list[str]
    rope: dict[str, Any]  # rope_parameters of the configuration


def read_source(location: str) -> Source:
    """A run folder (its newest checkpoint), one of its checkpoints, or a Hugging Face folder or name of a ModernBERT with its tokenizer.

    Raises UsageError when it is neither, CheckpointError when the run is damaged. Only safetensors are read.
    """
    from dnascale.runs import Run, is_run

    path = Path(location)
    if is_run(path):
        run = Run.open(path)
        where = f"{run.folder}, step {run.checkpoint.state.step:,}"
        checkpoint = run.checkpoint
        rope = checkpoint.identity.model["rope_parameters"]
        return Source(where, checkpoint.weights(), list(run.vocabulary().tokens), rope)
    from transformers import AutoTokenizer, ModernBertForMaskedLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        hf = ModernBertForMaskedLM.from_pretrained(location, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(location)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(
            f"model.init_from={location} is neither a run folder (it has no config.yaml) nor a Hugging Face model: {first_line(error)}"
        ) from None
    weights = {name: value.detach().float() for name, value in hf.named_parameters()}
    tokens = tokenizer.convert_ids_to_tokens(range(len(weights[_EMBEDDING])))
    return Source(location, weights, [str(token) for token in tokens], hf.config.rope_parameters)


def begin_with(source: Source, engine: "Engine", vocabulary: Vocabulary) -> str:
    """Puts into the engine what fits of a source's weights, and says what that was. The optimizer begins with nothing.

    Rows of the embedding go by token, whatever ids these had. What does not fit stays fresh. Raises UsageError when that is most of it.
    """
    import torch

    wanted = {name: torch.Size(shape) for name, shape in engine.shapes.items()}
    by_token = _rows_of_tokens(source, vocabulary, wanted[_EMBEDDING][-1])
    found: dict[str, torch.Tensor] = {}
    fresh, others = [], [name for name in source.weights if name not in wanted]
    for name, shape in wanted.items():
        value = source.weights.get(name)
        if name in (_EMBEDDING, _BIAS):
            continue
        if value is not None and value.shape == shape:
            found[name] = value
        else:
            has = "not there" if value is None else f"{tuple(value.shape)} there"
            fresh.append(f"{name} {tuple(shape)} ({has})")
    count = sum(shape.numel() for shape in wanted.values())
    taken = sum(value.numel() for value in found.values()) + by_token.numel
    if taken < _LEAST * count:
        listed = ", ".join(fresh[:3]) + (f" and {len(fresh) - 3} more" if len(fresh) > 3 else "")
        raise UsageError(
            f"model.init_from={source.where} is another model: {taken:,} of {count:,} parameters fit. What does not: {listed}."
        )
    for fragment in engine.held():
        if fragment.kind == "weight" and fragment.parameter in found:
            flat = found[fragment.parameter].reshape(-1)
            engine.put(fragment, flat.narrow(0, fragment.start, fragment.numel))
        elif fragment.kind == "weight" and fragment.parameter in (_EMBEDDING, _BIAS):
            own = engine.get(fragment).detach().float().cpu()
            engine.put(fragment, by_token.over(fragment.parameter, fragment.start, own))
    engine.loaded(0)
    sentence = f"{source.where}: {taken:,} of {count:,} parameters, {by_token.count} of {len(vocabulary)} tokens"
    if fresh:
        sentence += f"; fresh: {', '.join(fresh)}"
    if others:
        sentence += f"; not used: {', '.join(others)}"
    for layers, rope in engine.module.hf.config.rope_parameters.items():
        if (theirs := source.rope[layers]["rope_theta"]) != rope["rope_theta"]:
            kind = {"full_attention": "global", "sliding_attention": "local"}[layers]
            sentence += (
                f"; they were trained with model.{kind}_rope_theta={theirs:g}, which is now {rope['rope_theta']:g}"
            )
    return sentence


@dataclass(frozen=True)
class _Rows:
    """What a source has for tokens: for each token of the vocabulary its place there, or -1."""

    places: "torch.Tensor"
    weights: "dict[str, torch.Tensor]"
    width: int

    @property
    def count(self) -> int:
        return int((self.places >= 0).sum())

    @property
    def numel(self) -> int:
        return self.count * (self.width + (_BIAS in self.weights)) if self._fits(_EMBEDDING) else 0

    def _fits(self, name: str) -> bool:
        return name in self.weights and (name == _BIAS or self.weights[name].shape[-1] == self.width)

    def over(self, name: str, start: int, own: "torch.Tensor") -> "torch.Tensor":
        """`own`, elements from `start` on of the flat parameter, with those of known tokens replaced."""
        import torch

        if not self._fits(name):
            return own
        width = 1 if name == _BIAS else self.width
        element = torch.arange(start, start + own.numel())
        place = self.places[element // width]
        theirs = self.weights[name].reshape(-1)[place.clamp_min(0) * width + element % width]
        return torch.where(place >= 0, theirs, own)


def _rows_of_tokens(source: Source, vocabulary: Vocabulary, width: int) -> _Rows:
    import torch

    place = {token: n for n, token in enumerate(source.tokens)}
    return _Rows(torch.tensor([place.get(token, -1) for token in vocabulary.tokens]), source.weights, width)
