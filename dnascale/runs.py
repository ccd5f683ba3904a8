"""A finished or running training run, as the commands that use its model see it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dnascale.config import Config, DataConfig, parse
from dnascale.data.corpus import Corpus, open_corpus
from dnascale.data.remote import is_remote
from dnascale.errors import CheckpointError, DataError, UsageError
from dnascale.files import read_tree
from dnascale.train.checkpoint import Checkpoint, committed, require_newest
from dnascale.vocab import CHARACTER, Vocabulary, read_vocabulary

if TYPE_CHECKING:
    from transformers import ModernBertForMaskedLM


@dataclass(frozen=True)
class Run:
    """Configuration and a checkpoint of a run folder: the newest valid one, or the one that was asked for."""

    folder: Path
    config: Config
    checkpoint: Checkpoint
    locations: dict[str, str]  # of the data sets by name, where they are now
    asked_for: bool = False  # this checkpoint, and not the newest

    @classmethod
    def open(cls, folder: Path, data: str | None = None) -> "Run":
        """A run folder, or one of its checkpoints' folders. `data` is where the data set is now, if it has moved since training; of several,
        the folder with one of each name.

        Raises UsageError when the folder is no run, CheckpointError when it has no valid checkpoint.
        """
        checkpoint = None
        if (folder / "MANIFEST.json").is_file():
            checkpoint = Checkpoint(folder)
            checkpoint.verify()
            folder = Path(os.path.abspath(folder)).parent.parent
        path = folder / "config.yaml"
        if not path.is_file() and folder.parent.name == "checkpoints" and folder.parent.is_dir():
            there = ", ".join(one.name for one in committed(folder.parent)) or "none"
            raise UsageError(f"{folder} is not there: the checkpoints of {folder.parent.parent} are {there}.")
        if not path.is_file():
            raise UsageError(f"{folder} is no run folder: it has no config.yaml (dnascale train makes one).")
        config = parse(read_tree(path), str(path))
        locations = config.data.locations()
        if data is not None:
            alone = len(locations) == 1
            locations = {name: data if alone else f"{data.rstrip('/')}/{name}" for name in locations}
        return cls(folder, config, checkpoint or require_newest(folder), locations, checkpoint is not None)

    def corpus(self) -> Corpus:
        """The data it was trained on. Raises DataError, or CheckpointError when other data are there now."""
        try:
            corpus = open_data(self.config.data, self.locations)
        except DataError as error:
            gone = [where for where in self.locations.values() if not is_remote(where) and not Path(where).exists()]
            if not gone:
                raise
            raise DataError(
                f"{self.folder} was trained on {', '.join(gone)}, which is not there: say where it is now with --data, or put it back."
            ) from error
        if corpus.fingerprint != self.checkpoint.identity.data:
            raise CheckpointError(f"{corpus.location} is not what {self.folder} was trained on (another fingerprint).")
        return corpus

    def vocabulary(self) -> Vocabulary:
        """What its tokens are. Raises DataError or CheckpointError when the file that says so is damaged or of another run."""
        path = self.folder / "vocabulary.json"
        vocabulary = read_vocabulary(path) if path.exists() else CHARACTER
        if vocabulary.digest != self.checkpoint.identity.vocabulary:
            raise CheckpointError(
                f"{path} is missing or not that of {self.checkpoint.folder}: restore it from a copy of the run."
            )
        return vocabulary

    def keeps_u(self) -> bool:
        """Whether it was trained on RNA as it is written (`prepare --alphabet rna`): else U was read as T."""
        try:
            return "rna" in json.loads((self.folder / "environment.json").read_text())["alphabets"]
        except (OSError, ValueError, KeyError, TypeError):  # an older run, or a copy without the file
            return False

    def model(self) -> "ModernBertForMaskedLM":
        """The trained Hugging Face model with its fp32 weights."""
        from dnascale.model.modernbert import build_to_fill

        hf = build_to_fill(self.config.model, self.vocabulary())
        # The tied decoder weight is not stored a second time.
        missing, unexpected = hf.load_state_dict(self.checkpoint.weights(), strict=False)
        if unexpected or set(missing) - {"decoder.weight"}:
            raise CheckpointError(f"{self.checkpoint.folder} does not fit its model: {missing + unexpected}.")
        hf.tie_weights()
        return hf.eval()


def is_run(path: Path) -> bool:
    """Whether this is a run folder, or one of its checkpoints'."""
    return (path / "config.yaml").is_file() or (path / "MANIFEST.json").is_file()


def open_data(data: DataConfig, locations: dict[str, str] | None = None) -> Corpus:
    """What the configuration says to train on; `locations` if it has moved since. Raises DataError."""
    limit = None if data.cache_limit_gb is None else int(data.cache_limit_gb * 1e9)
    cache = Path(data.cache) if data.cache else None
    return open_corpus(locations or data.locations(), data.weights(), data.temperature, cache, limit)


def open_dataset(location: str) -> Corpus:
    """A single data set, local or at a URL. Raises DataError."""
    return open_corpus({"data": location})
