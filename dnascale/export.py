"""`dnascale export`: a run's model as a plain Hugging Face folder that needs no dnascale."""

import json
from pathlib import Path
from typing import Any

from dnascale.card import model_card
from dnascale.errors import CheckpointError
from dnascale.files import whole_folder
from dnascale.runs import Run


def export(run: Run, out: Path, licence: str | None = None, shard_gb: float = 5.0) -> Path:
    """Writes config, safetensors weights (fp32, in files of at most `shard_gb` GB), tokenizer and model card to `out`, then reads
    them back. `licence`: for the card.

    `out` appears whole or not at all. Raises UsageError or SpaceError when it cannot be written, CheckpointError when the
    model read back differs.
    """
    import torch
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one file, read in milliseconds
    model, vocabulary = run.model(), run.vocabulary()
    with whole_folder(out) as work:
        model.save_pretrained(work, max_shard_size=round(shard_gb * 1e9))
        vocabulary.tokenizer(run.config.model.context).save_pretrained(work)
        _clean_config(work / "config.json")
        (work / "README.md").write_text(model_card(run, licence))
        again = AutoModelForMaskedLM.from_pretrained(work).eval()
        sample = torch.arange(min(64, run.config.model.context)).remainder(len(vocabulary))[None]
        with torch.no_grad():
            difference = float((again(input_ids=sample).logits - model(input_ids=sample).logits).abs().max())
        if difference != 0.0:
            raise CheckpointError(f"the exported model differs from the trained one (logits by {difference:.2e}).")
    return out


def _clean_config(path: Path) -> None:
    """Leaves out what belongs to this machine and not to the model."""
    values: dict[str, Any] = json.loads(path.read_text())
    for key in ("_name_or_path", "_attn_implementation", "attn_implementation"):
        values.pop(key, None)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
