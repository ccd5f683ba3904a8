"""dnascale: train DNA language models, from one laptop to a cluster, with the same commands.

    from dnascale import EmbedOptions, ScoreOptions, Variant, embed, load_model, score_variants

What these names need is imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnascale.evaluate.embed import Embedding, EmbedOptions, embed
    from dnascale.evaluate.language_model import LanguageModel, load_model
    from dnascale.evaluate.variants.in_memory import Score, Variant, score_variants
    from dnascale.evaluate.variants.scores import ScoreOptions

__version__ = "0.1.0"
__all__ = [
    "EmbedOptions",
    "Embedding",
    "LanguageModel",
    "Score",
    "ScoreOptions",
    "Variant",
    "__version__",
    "embed",
    "load_model",
    "score_variants",
]

_WHERE = {
    "EmbedOptions": "dnascale.evaluate.embed",
    "Embedding": "dnascale.evaluate.embed",
    "LanguageModel": "dnascale.evaluate.language_model",
    "Score": "dnascale.evaluate.variants.in_memory",
    "ScoreOptions": "dnascale.evaluate.variants.scores",
    "Variant": "dnascale.evaluate.variants.in_memory",
    "embed": "dnascale.evaluate.embed",
    "load_model": "dnascale.evaluate.language_model",
    "score_variants": "dnascale.evaluate.variants.in_memory",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'dnascale' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
