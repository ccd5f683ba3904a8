"""A training job whose step is traced and differentiated as torch.compile does it, and then run without generating code."""

import json
import sys
from pathlib import Path

import torch
from torch._dynamo.utils import counters

from dnascale.cli import main as dnascale


def main(words: list[str], counts: Path) -> None:
    """Leaves how many graphs there were, and how many breaks in them, in `counts`."""
    compiler = torch.compile
    torch.compile = lambda *args, **options: compiler(*args, backend="aot_eager", **options)
    sys.argv = ["dnascale", *words]
    try:
        dnascale(words)
    finally:
        breaks = sum(counters["graph_break"].values())
        counts.write_text(json.dumps({"graphs": counters["stats"]["unique_graphs"], "breaks": breaks}))
