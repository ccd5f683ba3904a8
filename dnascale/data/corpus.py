"""What a run trains on: one data set, or several mixed in given proportions."""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dnascale.data.mapped import Verify
from dnascale.data.order import Mixture, Order, temperature_weights
from dnascale.data.read import WindowReader
from dnascale.data.shards import Dataset, load_dataset
from dnascale.errors import DataError, DnascaleWarning, UsageError
from dnascale.vocab import Vocabulary


@dataclass(frozen=True)
class Corpus:
    """Data sets by name, in the order of their names, and their weights: relative numbers of windows."""

    sources: dict[str, Dataset]
    weights: tuple[float, ...]

    @property
    def vocabulary(self) -> Vocabulary:
        return next(iter(self.sources.values())).vocabulary

    @property
    def fingerprint(self) -> str:
        """Of the data set; of several, SHA-256 over their names and fingerprints. Weights belong to the configuration."""
        if len(self.sources) == 1:
            return next(iter(self.sources.values())).fingerprint
        text = "".join(f"{name}\0{dataset.fingerprint}\0" for name, dataset in self.sources.items())
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def location(self) -> str:
        """Folders or URLs, for messages."""
        return ", ".join(dataset.location for dataset in self.sources.values())

    @property
    def soft_mask_bit(self) -> bool:
        """Whether every source has the soft mask in its shards."""
        return all(dataset.soft_mask_bit for dataset in self.sources.values())

    def longest_record(self, split: str) -> int:
        """In bases."""
        return max(dataset.split(split).longest_record for dataset in self.sources.values())

    def bases_per_token(self, split: str) -> float:
        """Mean over the split; 1 where a token is a base."""
        splits = [dataset.split(split) for dataset in self.sources.values()]
        return sum(s.bases for s in splits) / max(1, sum(s.tokens - s.records for s in splits))

    def bases_in_a_token(self, split: str) -> float:
        """Mean over all tokens of the split, separators too: what turns tokens a second into bases a second."""
        splits = [dataset.split(split) for dataset in self.sources.values()]
        return sum(s.bases for s in splits) / sum(s.tokens for s in splits)

    def reader(self, split: str, context: int, verify: Verify = "checksum") -> WindowReader:
        """Raises DataError when a source has no such split, or no window of `context` tokens in it."""
        return WindowReader(list(self.sources.values()), split, context, verify)

    def held_out(self, split: str, context: int) -> WindowReader | None:
        """Of the sources that hold out such a split with a window in it; None when there is none."""
        having = [
            dataset
            for dataset in self.sources.values()
            if split in dataset.splits and dataset.splits[split].shards.tokens.max(initial=0) >= context
        ]
        return WindowReader(having, split, context) if having else None

    def order(self, reader: WindowReader, seed: int, lanes: int | None = None, lane_windows: int = 16_384) -> Order:
        """The order of the windows of `reader`. Raises UsageError for weights that cannot be kept."""
        try:
            mixture = Mixture(self.weights) if len(self.sources) > 1 else None
        except ValueError as error:
            of_each = ", ".join(f"{name} {weight:g}" for name, weight in zip(self.sources, self.weights, strict=True))
            raise UsageError(f"the sources cannot be mixed in the weights {of_each}: {error}.") from None
        return Order(reader.grids(), seed, mixture, lanes, lane_windows)


def open_corpus(
    sources: Mapping[str, str | Path],
    weights: Mapping[str, float] | None = None,
    temperature: float = 1.0,
    cache: Path | None = None,
    cache_limit: int | None = None,
) -> Corpus:
    """Opens data sets by name. Without `weights`, a source's is its number of training tokens ^ (1 / temperature).

    Warns of one that is given twice. Raises DataError when one cannot be opened, or they have not the same vocabulary.
    """
    opened = {name: load_dataset(sources[name], cache, cache_limit) for name in sorted(sources)}
    first = next(iter(opened))
    names: dict[str, str] = {}  # by fingerprint
    for name, dataset in opened.items():
        if (other := names.setdefault(dataset.fingerprint, name)) != name:
            warnings.warn(
                f"the sources {other} and {name} are the same data ({opened[other].location}, {dataset.location}): their windows are "
                "drawn with both weights. Name each once, and give it the weight it is to have.",
                DnascaleWarning, stacklevel=2,
            )  # fmt: skip
        if dataset.vocabulary.digest != opened[first].vocabulary.digest:
            raise DataError(
                f"{dataset.location} and {opened[first].location} have different vocabularies: prepare one of them again."
            )
    if weights is not None:
        of_each: Sequence[float] = [weights[name] for name in opened]
    else:
        of_each = temperature_weights([d.split("train").tokens for d in opened.values()], temperature)
    return Corpus(opened, tuple(of_each))
