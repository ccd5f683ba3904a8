"""`dnascale export`: a run's model as a plain Hugging Face folder that needs no dnascale."""

import json
from pathlib import Path
from typing import Any

from dnascale import __version__
from dnascale.errors import CheckpointError
from dnascale.files import whole_folder
from dnascale.runs import Run


def export(run: Run, out: Path) -> Path:
    """Writes config, safetensors weights (fp32), tokenizer and model card to `out`, then reads them back.

    `out` appears whole or not at all. Raises UsageError or SpaceError when it cannot be written, CheckpointError when the
    model read back differs.
    """
    import torch
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one file, read in milliseconds
    model, vocabulary = run.model(), run.vocabulary()
    with whole_folder(out) as work:
        model.save_pretrained(work)
        vocabulary.tokenizer(run.config.model.context).save_pretrained(work)
        _clean_config(work / "config.json")
        (work / "README.md").write_text(model_card(run))
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


def model_card(run: Run) -> str:
    """Markdown: what the model is, what it was trained on, what it reaches."""
    config, state, vocabulary = run.config, run.checkpoint.state, run.vocabulary()
    names = ", ".join(Path(location).name for location in config.data.locations().values())
    rows = ""
    for path in sorted(run.folder.glob("evaluation-*.json")):
        result = json.loads(path.read_text())
        if result["step"] != state.step:
            continue
        scores = [("**this model**", result["model"])] + [(b["name"], b) for b in result["baselines"]]
        table = "\n".join(f"| {name} | {s['nats_per_base']:.4f} | {s['bits_per_base']:.4f} |" for name, s in scores)
        rows += f"\n## Held-out loss ({result['split']} split)\n\n| model | nats per base | bits per base |\n|---|---|---|\n"
        rows += table + "\n"
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [dna, genomics, modernbert, masked-language-model]
---
# {run.folder.name}

A DNA language model over the tokens `{vocabulary.name}`: ModernBERT, {config.model.layers} layers of {config.model.hidden_size}, context
{config.model.context} tokens, masked language modelling. Trained with dnascale {__version__} for {state.step:,} steps
({state.tokens:,} tokens) on the data `{names}` (fingerprint `{run.checkpoint.identity.data}`).

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer
model = AutoModelForMaskedLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
logits = model(**tokenizer("ACG[MASK]ACGT", return_tensors="pt")).logits
```

{vocabulary.in_words}; lower case equals upper case; no token is added at the ends.
{rows}
## Limits

A model of sequence statistics. It has not been validated for clinical use.
"""
