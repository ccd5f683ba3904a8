"""`dnascale eval`: a run's held-out loss beside what simple models of the same data reach."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from dnascale.data.read import covering_windows, split_records
from dnascale.evaluate.baselines import Baseline, fit_and_score
from dnascale.evaluate.loss import HeldOutLoss, held_out_loss
from dnascale.runs import Run
from dnascale.train.distributed import choose_device
from dnascale.train.precision import fastest_precision

#: Baselines are fitted on at most this many training tokens: enough for their largest tables, bounded memory.
MAX_FIT_TOKENS = 100_000_000


@dataclass(frozen=True)
class Evaluation:
    """A model and its rivals on one split."""

    run: str
    step: int
    split: str
    model: HeldOutLoss
    baselines: list[Baseline]

    def to_dict(self) -> dict[str, Any]:
        model = asdict(self.model) | {"bits_per_base": self.model.bits_per_base}
        return {
            "run": self.run,
            "step": self.step,
            "split": self.split,
            "model": model,
            "baselines": [asdict(b) | {"bits_per_base": b.nats_per_base / math.log(2)} for b in self.baselines],
        }


def evaluate(
    run: Run, split: str = "valid", device: str = "auto", progress: Callable[[str, int, int], None] | None = None
) -> Evaluation:
    """Scores every base of a split with the run's newest checkpoint, and fits and scores the baselines.

    `progress(what, done, total)` is told of windows, then of families of baselines. Writes `evaluation-SPLIT.json` into the run folder.
    """
    import torch

    from dnascale.data.masking import Masking
    from dnascale.model.modernbert import MaskedLanguageModel

    corpus = run.corpus()
    # Of the sources that hold out such a split, as in training; if none does, `reader` says so.
    reader = corpus.held_out(split, run.config.model.context) or corpus.reader(split, run.config.model.context)
    chosen = torch.device(choose_device(device))
    masking = Masking(corpus.vocabulary, **run.config.masking.model_dump())
    bf16 = run.config.train.precision == fastest_precision(chosen.type) == "bf16"
    model = MaskedLanguageModel(
        run.model(), masking, run.config.data.separate_records, autocast=torch.bfloat16 if bf16 else None
    )
    model.to(chosen).eval()
    done = 0
    total = len(covering_windows(reader.shard_tokens, reader.context)[0])

    def advance(windows: int) -> None:
        nonlocal done
        done += windows
        if progress is not None:
            progress("evaluating", done, total)

    micro = run.config.train.micro_batch_tokens  # a run's own file has a number
    batch_windows = 1 if micro == "auto" else max(1, micro // run.config.model.context)
    loss = held_out_loss(model.logits, reader, corpus.vocabulary, chosen, batch_windows, progress=advance)
    families = itertools.count()
    baselines = fit_and_score(
        [
            r
            for one in corpus.sources.values()
            for r in split_records(one, "train", MAX_FIT_TOKENS // len(corpus.sources))
        ],
        [record for one in reader.sources for record in split_records(one, split)],
        progress=lambda what: progress(what, next(families), 3) if progress is not None else None,
    )
    result = Evaluation(str(run.folder), run.checkpoint.state.step, split, loss, baselines)
    (run.folder / f"evaluation-{split}.json").write_text(json.dumps(result.to_dict(), indent=1) + "\n")
    return result
