"""dnascale: train DNA language models, from one laptop to a cluster, with the same commands.

    from dnascale import EmbedOptions, embed, load_model

What these names need is imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dnascale.evaluate.embed import Embedding, EmbedOptions, embed
    from dnascale.evaluate.language_model import LanguageModel, load_model

__version__ = "0.1.0"
__all__ = ["EmbedOptions", "Embedding", "LanguageModel", "__version__", "embed", "load_model"]

_WHERE = {
    "EmbedOptions": "dnascale.evaluate.embed",
    "Embedding": "dnascale.evaluate.embed",
    "LanguageModel": "dnascale.evaluate.language_model",
    "embed": "dnascale.evaluate.embed",
    "load_model": "dnascale.evaluate.language_model",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'dnascale' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
