"""Floating-point operations of a training step, as the model needs them: what MFU is counted with.

A multiply-add is 2, backward is twice forward, and nothing that is computed again or thrown away is counted: local layers
count the keys they see, the head counts the positions it predicts. Embedding look-ups, norms, rotary embeddings and
softmax are left out. The convention is that of PaLM (Chowdhery et al. 2022, appendix B), with attention as it is windowed.
"""

from typing import TYPE_CHECKING

import numpy as np

from dnascale.config import Config, ModelConfig

if TYPE_CHECKING:
    from dnascale.data.masking import Masking
    from dnascale.data.stream import TrainStream

#: Windows that the lengths of records are estimated from.
_SAMPLE = 256


def keys_per_token(lengths: np.ndarray, reach: int | None) -> float:
    """Mean number of keys that a token attends to in records of `lengths` tokens, within `reach` to each side.

    `reach` None: all of its record.
    """
    n = np.asarray(lengths, dtype=np.float64)
    if reach is None:
        return float((n * n).sum() / n.sum())
    far = np.minimum(reach, n - 1)
    return float((n * (2 * far + 1) - far * (far + 1)).sum() / n.sum())


def record_lengths(tokens: np.ndarray, separator: int) -> np.ndarray:
    """Windows [B, S] of token ids -> int64, the lengths of the stretches that see each other; a separator is one alone."""
    windows, length = tokens.shape
    is_separator = tokens == separator
    begins = np.ones((windows, length), dtype=bool)
    begins[:, 1:] = is_separator[:, 1:] | is_separator[:, :-1]
    return np.diff(np.flatnonzero(begins.ravel()), append=windows * length)


def train_flops_per_token(model: ModelConfig, vocabulary: int, predicted_share: float, lengths: np.ndarray) -> float:
    """FLOPs of forward and backward for one token.

    `predicted_share`: of the tokens, for the head. `lengths`: of the records in a sample of windows.
    """
    near, everything = keys_per_token(lengths, model.local_attention // 2), keys_per_token(lengths, None)
    keys = model.global_layers * everything + (model.layers - model.global_layers) * near
    # Scores and weighted values are each one multiply-add per key and channel.
    return product_flops_per_token(model, vocabulary, predicted_share) + 12 * model.hidden_size * keys


def product_flops_per_token(model: ModelConfig, vocabulary: int, predicted_share: float) -> float:
    """The part of it that is products with weights."""
    hidden = model.hidden_size
    layers = model.layers * (4 * hidden**2 + 3 * hidden * model.intermediate_size)
    return 6 * (layers + predicted_share * (hidden**2 + hidden * vocabulary))


def stage_flops(config: Config, masking: "Masking", stream: "TrainStream", context: int) -> float:
    """FLOPs a token of training on windows of `context` tokens, with records as long as in the next few windows of `stream`."""
    vocabulary = masking.vocabulary
    windows = stream.order.windows(
        stream.dealing.positions(stream.position, 1)[:_SAMPLE]
    )  # which this rank will read anyway
    lengths = np.array([context])
    if config.data.separate_records:
        tokens = stream.reader.read(windows).numpy()
        lengths = record_lengths(tokens & (vocabulary.soft_mask_bit - 1), vocabulary.sep)
    return train_flops_per_token(config.model, len(vocabulary), masking.count(context) / context, lengths)
