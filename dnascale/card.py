"""The model card of an exported model: what its run knows of it."""

import json
import math
from pathlib import Path
from typing import Any

from dnascale import __version__
from dnascale.errors import DnascaleError
from dnascale.report.read import read_evaluations, read_json
from dnascale.runs import Run, open_data


def model_card(run: Run, licence: str | None = None) -> str:
    """Markdown: what the model is, what it was trained on and how, what it reaches, and what it is not for.

    `licence`: an identifier of the Hub (e.g. mit, cc-by-4.0), for its header. Data sets that are no longer where the run says are
    named without their contents.
    """
    config, vocabulary = run.config, run.vocabulary()
    header = ["---", "library_name: transformers", "pipeline_tag: fill-mask"]
    header += [f"license: {licence}"] if licence else []
    header += ["tags: [dna, genomics, modernbert, masked-language-model]", "---"]
    return (
        "\n".join(header)
        + f"""
# {run.folder.resolve().name}

A DNA language model over the tokens `{vocabulary.name}`: ModernBERT, {config.model.layers} layers of {config.model.hidden_size}, context
{config.model.context} tokens, masked language modelling. Exported by dnascale {__version__}.

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer
model = AutoModelForMaskedLM.from_pretrained("PATH")
tokenizer = AutoTokenizer.from_pretrained("PATH")
logits = model(**tokenizer("ACG[MASK]ACGT", return_tensors="pt")).logits
```

{vocabulary.in_words}; lower case equals upper case; no token is added at the ends.

## Data

{_data(run)}

## Training

{_recipe(run)}
{_evaluations(run)}
## Limits

{_limits(run)}

## Licence

{f"`{licence}`." if licence else "Not stated by whoever exported it. The data may have terms of their own."}
"""
    )


def _data(run: Run) -> str:
    rows = []
    for name, location in run.locations.items():
        try:
            dataset = open_data(run.config.data, {name: location}).sources[name]
        except (DnascaleError, OSError):
            rows.append([f"`{Path(location).name}`", "", "", "not there when the model was exported"])
            continue
        sources = ", ".join(f"`{source['name']}`" for source in json.loads(dataset.to_json())["sources"][:5])
        for split, one in dataset.splits.items():
            rows.append([f"`{name}` {split}", f"{one.records:,}", f"{one.bases:,}", sources])
    table = _table(["data set", "records", "bases", "from"], rows)
    return f"{table}\n\nFingerprint: `{run.checkpoint.identity.data}`."


def _recipe(run: Run) -> str:
    config, state = run.config, run.checkpoint.state
    masking, optimizer = config.masking, config.optimizer
    strand = "both strands at random" if masking.reverse_complement else "the strand of the data alone"
    rows = [
        ["steps", f"{state.step:,} of {config.train.steps:,}" if config.train.steps else f"{state.step:,}"],
        ["tokens", f"{state.tokens:,}"],
        ["tokens a step", f"{config.train.global_batch_tokens:,}"],
        [
            "masked",
            f"{masking.rate:.0%}: {masking.replace_with_mask:.0%} [MASK], {masking.replace_with_random:.0%} another base",
        ],
        ["strands", strand],
        [
            "optimizer",
            f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, weight decay {optimizer.weight_decay:g}",
        ],
        ["schedule", f"{config.schedule.shape}"],
        ["precision", config.train.precision],
        ["seed", f"{config.train.seed}"],
    ]
    if known := read_json(run.folder / "environment.json"):
        rows.append(["devices", ", ".join(known.get("devices", []))])
        rows.append(["versions", ", ".join(f"{name} {v}" for name, v in known.get("versions", {}).items())])
    rows += [[words, f"{value:.4f} nats per base"] for words, value in _last_losses(run)]
    return _table(["", ""], rows)


def _last_losses(run: Run) -> list[tuple[str, float]]:
    """The last ones up to the exported step, as they were logged."""
    last: dict[str, float] = {}
    path = run.folder / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            row: dict[str, Any] = json.loads(line)
        except ValueError:
            continue  # cut off by a crash
        if row.get("step", 0) > run.checkpoint.state.step:
            continue
        if "nats_per_base" in row:
            last[f"training loss, step {row['step']:,}"] = row["nats_per_base"]
        elif "valid_loss" in row:
            last[f"validation loss in training, step {row['step']:,}"] = row["valid_loss"]
    training = [pair for pair in last.items() if pair[0].startswith("training")][-1:]
    return training + [pair for pair in last.items() if pair[0].startswith("validation")][-1:]


def _evaluations(run: Run) -> str:
    """Of this very step, each split once; those of others are left out, and what is no evaluation."""
    text, known = "", set()
    for result in read_evaluations(run.folder.glob("*evaluation-*.json")):
        if result["step"] != run.checkpoint.state.step or result["split"] in known:
            continue
        known.add(result["split"])
        scores = [("**this model**", result["model"])] + [(one["name"], one) for one in result["baselines"]]
        rows = [
            [name, f"{one['nats_per_base']:.4f}", f"{one['nats_per_base'] / math.log(2):.4f}"] for name, one in scores
        ]
        text += f"\n## Held-out loss ({result['split']} split)\n\n"
        text += _table(["model", "nats per base", "bits per base"], rows) + "\n"
    return text or "\nNot evaluated beside baselines at this step (`dnascale eval`).\n"


def _limits(run: Run) -> str:
    limits = [
        "A model of sequence statistics. It has not been validated for clinical use.",
        f"It sees {run.config.model.context:,} tokens at a time, and was trained on the data above alone: on other sequences its likelihoods mean less.",
    ]
    if not run.config.masking.reverse_complement:
        limits.append("It was trained on one strand: give it that strand, and do not average both.")
    return "\n".join(f"- {limit}" for limit in limits)


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])
