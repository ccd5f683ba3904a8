"""Likelihoods of bases in windows of one length, both strands averaged: what every score is made of."""

from collections.abc import Callable

import numpy as np

from dnascale.evaluate.language_model import BASE_OF_CODE, BASES, COMPLEMENT, LanguageModel

#: Tokens of one forward: what keeps a CPU's caches, and a GPU, busy.
BATCH_TOKENS = {"cpu": 1 << 14, "mps": 1 << 15, "cuda": 1 << 18}


class Likelihood:
    """A model, and how it is asked: strands, and windows a forward. `advance` is told of windows done."""

    def __init__(
        self,
        model: LanguageModel,
        both_strands: bool = True,
        batch_tokens: int | None = None,
        advance: Callable[[int], None] = lambda _windows: None,
    ) -> None:
        self.model, self.both_strands, self.advance = model, both_strands, advance
        self.batch_tokens = batch_tokens or BATCH_TOKENS[model.device.type]

    def log_p(self, codes: np.ndarray, positions: np.ndarray, hide: bool = True) -> np.ndarray:
        """See `LanguageModel.log_p`: codes uint8 [n, S], positions int64 [n, K] -> float64 [n, K, 4], for any n.

        The other strand is the reverse complement of the window, its distributions turned back to this one; the mean is taken
        over ln p, so that a log-likelihood ratio is the mean of the two strands' ratios.
        """
        rows = max(1, self.batch_tokens // codes.shape[1])
        out = np.empty((*positions.shape, len(BASES)))
        for start in range(0, len(codes), rows):
            window, at = codes[start : start + rows], positions[start : start + rows]
            log_p = self.model.log_p(window, at, hide).astype(np.float64)
            if self.both_strands:
                other = self.model.log_p(reverse_complement(window), codes.shape[1] - 1 - at, hide)
                log_p = (log_p + other[..., ::-1]) / 2  # A C G T reversed is T G C A
            out[start : start + rows] = log_p
            self.advance(len(window))
        return out

    def pseudo_log_likelihood(self, codes: np.ndarray, start: int, end: int, together: int = 1) -> float:
        """Sum over positions start to end of ln p(base | the rest of the window), each hidden in its turn; codes uint8 [S].

        `together` positions, spread evenly, are hidden at once: exact with 1. Letters other than A, C, G, T are not counted.
        """
        base = BASE_OF_CODE[codes]
        counted = np.arange(start, end)
        counted = counted[base[start:end] >= 0]
        if not len(counted):
            return 0.0
        groups = -(-len(counted) // together)
        # The last group may be smaller: it is filled up with its own first position, which counts once.
        filled = np.full((groups, together), -1)
        for group in range(groups):
            filled[group, : len(counted[group::groups])] = counted[group::groups]
        real = filled >= 0
        at = np.where(real, filled, filled[:, :1])
        log_p = self.log_p(np.broadcast_to(codes, (groups, len(codes))), at)
        return float((np.take_along_axis(log_p, base[at][..., None], axis=2)[..., 0] * real).sum())


def reverse_complement(codes: np.ndarray) -> np.ndarray:
    """uint8 [..., S] character codes of the other strand, read in its direction."""
    return COMPLEMENT[codes[..., ::-1]]
