"""Scoring variants and embedding, beside how it is usually done: one run, in rounds, the same model, the same numbers.

    python benchmarks/variants.py MODEL --rounds 3 --out docs/benchmarks/variants.jsonl
    python benchmarks/variants.py --table docs/benchmarks/variants.jsonl > docs/benchmarks/variants.md

MODEL is a Hugging Face folder that `dnascale export` wrote, or a run. Every substitution of 240 bases of DRD2's coding sequence is scored on one strand:

the book's loop   one variant after the other: its window with the position masked, a forward of one sequence, all logits
careful           transformers by someone careful: each position once, 64 windows a batch, logits of all positions
dnascale          score_variants, exact: one position hidden in a window
together          the same with 8 positions hidden in each window, an approximation
bf16              both with --precision bf16

The loop is measured on the first 60 variants, the others on all. Ratios are of variants a second within a round; largest differences of the
scores from the loop's are said. Embedding: mean vectors of 64 sequences, one by one (the loop) and in padded batches of 16 (careful).
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

LOOP = 60  # variants
SEQUENCES = 64
PLACES = range(400, 640)  # of the gene, from 1, whose substitutions are scored


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON lines to append to")
    parser.add_argument("--table", type=Path, help="rows of an earlier run, as a table")
    options = parser.parse_args()
    if options.table:
        print(as_table([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    rows = measure(options.model, options.rounds, options.device)
    if options.out:
        with options.out.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    print(as_table(rows))


def measure(path: Path, rounds: int, device: str) -> list[dict[str, Any]]:
    import torch

    from dnascale import ScoreOptions, Variant, embed, load_model, score_variants

    model = load_model(path, device)
    half = load_model(path, device, precision="bf16")
    loop = Usual(path, model)
    lines = (files("dnascale") / "resources" / "DRD2_cds.fasta").read_text().splitlines()
    gene = "".join(lines[1:]).upper()
    variants = [
        Variant("DRD2", place, base, other)
        for place in PLACES
        for base in gene[place - 1]
        for other in "ACGT"
        if other != base
    ]
    names = {"DRD2": gene}

    def ours(together: int, with_model: Any = model) -> list[float]:
        scores = score_variants(with_model, names, variants, ScoreOptions(both_strands=False, together=together))
        return [one.llr or 0.0 for one in scores]

    ways: dict[str, tuple[int, Callable[[], list[float]]]] = {
        "the book's loop": (LOOP, lambda: loop.one_by_one(gene, variants[:LOOP])),
        "careful": (len(variants), lambda: loop.batched(gene, variants)),
        "dnascale": (len(variants), lambda: ours(1)),
        "together": (len(variants), lambda: ours(8)),
        "dnascale, bf16": (len(variants), lambda: ours(1, half)),
        "together, bf16": (len(variants), lambda: ours(8, half)),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    scores: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, (count, way) in ways.items():
            begin = time.perf_counter()
            scores[name] = way()
            found[name].append(count / (time.perf_counter() - begin))
    exact = scores["careful"]
    apart = {name: max(abs(a - b) for a, b in zip(values, exact, strict=False)) for name, values in scores.items()}

    sequences = [(str(n), gene[n : n + 300 + 3 * (n % 50)].encode()) for n in range(SEQUENCES)]
    bases = sum(len(letters) for _, letters in sequences)
    ways_to_embed: dict[str, Callable[[], list[Any]]] = {
        "embed, one by one": lambda: loop.embedded(sequences, 1),
        "embed, careful": lambda: loop.embedded(sequences, 16),
        "embed, dnascale": lambda: [one.values for one in embed(model, sequences, _forward())],
        "embed, dnascale, bf16": lambda: [one.values for one in embed(half, sequences, _forward())],
    }
    vectors: dict[str, list[Any]] = {}
    embedded: dict[str, list[float]] = {name: [] for name in ways_to_embed}
    for _ in range(rounds):
        for name, way in ways_to_embed.items():
            begin = time.perf_counter()
            vectors[name] = way()
            embedded[name].append(bases / (time.perf_counter() - begin))
    truth = vectors["embed, one by one"]
    for name, values in vectors.items():
        apart[name] = max(float(abs(a - b).max()) for a, b in zip(values, truth, strict=True))

    base = {
        "model": path.name, "parameters": sum(p.numel() for p in model.hf.parameters()), "context": model.context, "device": str(model.device),
        "machine": f"{os.cpu_count()} CPUs ({platform.machine()})" if device == "cpu" else torch.cuda.get_device_name(), "rounds": rounds,
        "torch": version("torch"), "transformers": version("transformers"), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    rows = []
    for rates, unit, first in ((found, "variants/s", "the book's loop"), (embedded, "bases/s", "embed, one by one")):
        for name, values in rates.items():
            times = [value / other for value, other in zip(values, rates[first], strict=True)]
            rows.append(
                base | {"way": name, "unit": unit, "rate": statistics.median(values), "lowest": min(values), "highest": max(values),
                        "times": statistics.median(times), "largest_difference": apart[name]}
            )  # fmt: skip
    return rows


def _forward() -> Any:
    from dnascale import EmbedOptions

    return EmbedOptions(both_strands=False)


class Usual:
    """transformers alone: the model as it is loaded, with its own attention and tokenizer."""

    def __init__(self, path: Path, loaded: Any) -> None:
        import tempfile

        import torch
        from transformers import AutoModelForMaskedLM, AutoTokenizer

        from dnascale.export import export
        from dnascale.runs import Run

        if (path / "config.yaml").is_file():
            folder = Path(tempfile.mkdtemp()) / "model"
            path = export(Run.open(path), folder)
        self.torch, self.device, self.context = torch, loaded.device, loaded.context
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = AutoModelForMaskedLM.from_pretrained(path, attn_implementation="sdpa").to(self.device).eval()
        self.ids = {base: self.tokenizer.convert_tokens_to_ids(base) for base in "ACGT"}
        self.four = [self.ids[base] for base in "ACGT"]

    def window(self, gene: str, place: int) -> tuple[str, int]:
        """A window around a position (0-based), symmetric as far as the ends allow, as dnascale cuts it; and where it lies there."""
        from dnascale.evaluate.variants.scores import flanks

        left, right = flanks(place, place + 1, 1, len(gene), self.context)
        return gene[place - left : place + 1 + right], left

    def one_by_one(self, gene: str, variants: list[Any]) -> list[float]:
        scores = []
        for one in variants:
            text, at = self.window(gene, one.position - 1)
            masked = text[:at] + self.tokenizer.mask_token + text[at + 1 :]
            inputs = self.tokenizer(masked, return_tensors="pt").to(self.device)
            with self.torch.no_grad():
                log_p = self.model(**inputs).logits[0, at].log_softmax(-1)
            scores.append(float(log_p[self.ids[one.alternative]] - log_p[self.ids[one.reference]]))
        return scores

    def batched(self, gene: str, variants: list[Any], size: int = 64) -> list[float]:
        places = sorted({one.position - 1 for one in variants})
        log_p = {}
        for begin in range(0, len(places), size):
            some = places[begin : begin + size]
            cut = [self.window(gene, place) for place in some]
            texts = [text[:at] + self.tokenizer.mask_token + text[at + 1 :] for text, at in cut]
            inputs = self.tokenizer(texts, return_tensors="pt", padding=True).to(self.device)
            with self.torch.inference_mode():
                logits = self.model(**inputs).logits.log_softmax(-1)
            for row, (place, (_, at)) in enumerate(zip(some, cut, strict=True)):
                log_p[place] = logits[row, at]
        return [
            float(log_p[one.position - 1][self.ids[one.alternative]] - log_p[one.position - 1][self.ids[one.reference]])
            for one in variants
        ]

    def embedded(self, sequences: list[tuple[str, bytes]], size: int) -> list[Any]:
        means = []
        for begin in range(0, len(sequences), size):
            texts = [letters.decode() for _, letters in sequences[begin : begin + size]]
            inputs = self.tokenizer(texts, return_tensors="pt", padding=True).to(self.device)
            with self.torch.inference_mode():
                states = self.model.base_model(**inputs).last_hidden_state
            there = inputs["attention_mask"][:, :, None]
            means += [mean.cpu().numpy() for mean in (states * there).sum(1) / there.sum(1)]
        return means


def as_table(rows: list[dict[str, Any]]) -> str:
    one = rows[0]
    lines = [
        f"`{one['model']}`, {one['parameters'] / 1e6:.1f} M parameters, context {one['context']}, on {one['machine']}, {one['rounds']} rounds, "
        f"torch {one['torch']}, transformers {one['transformers']}, {one['date']}.",
        "",
        "| way | rate | lowest to highest | times the loop | largest difference |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['way']} | {row['rate']:,.1f} {row['unit']} | {row['lowest']:,.1f} to {row['highest']:,.1f} | {row['times']:,.1f} | "
        f"{row['largest_difference']:.1e} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
