"""A finished or running training run, as the commands that use its model see it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dnascale.config import Config, parse
from dnascale.data.shards import Dataset, load_dataset
from dnascale.errors import CheckpointError, UsageError
from dnascale.train.checkpoint import Checkpoint, require_newest

if TYPE_CHECKING:
    from transformers import ModernBertForMaskedLM


@dataclass(frozen=True)
class Run:
    """Configuration and newest valid checkpoint of a run folder."""

    folder: Path
    config: Config
    checkpoint: Checkpoint
    data: Path

    @classmethod
    def open(cls, folder: Path, data: Path | None = None) -> "Run":
        """`data` is where the data set is now, if it has moved since training. Raises UsageError when the folder is no run, CheckpointError when it has no valid checkpoint."""
        import yaml

        path = folder / "config.yaml"
        if not path.is_file():
            raise UsageError(f"{folder} is no run folder: it has no config.yaml (dnascale train makes one).")
        config = parse(yaml.safe_load(path.read_text()), str(path))
        return cls(folder, config, require_newest(folder), data or Path(config.data.path))

    def dataset(self) -> Dataset:
        """The data set it was trained on. Raises DataError, or CheckpointError when other data are there now."""
        dataset = load_dataset(self.data)
        if dataset.fingerprint != self.checkpoint.identity.data:
            raise CheckpointError(
                f"{dataset.folder} is not the data set that {self.folder} was trained on (another fingerprint)."
            )
        return dataset

    def model(self) -> "ModernBertForMaskedLM":
        """The trained Hugging Face model with its fp32 weights."""
        from dnascale.model.modernbert import build
        from dnascale.vocab import CHARACTER

        hf = build(self.config.model, CHARACTER)
        # The tied decoder weight is not stored a second time.
        missing, unexpected = hf.load_state_dict(self.checkpoint.weights(), strict=False)
        if unexpected or set(missing) - {"decoder.weight"}:
            raise CheckpointError(f"{self.checkpoint.folder} does not fit its model: {missing + unexpected}.")
        hf.tie_weights()
        return hf.eval()
