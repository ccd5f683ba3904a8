"""`dnascale eval`: a model's held-out loss beside what simple models of the same data reach, and taken apart."""

import itertools
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnascale.data.corpus import Corpus
from dnascale.data.read import WindowReader, covering_windows, split_records
from dnascale.device import choose_device, fastest_precision
from dnascale.errors import DataError, NumericsError, UsageError
from dnascale.evaluate.baselines import Baseline, Rivals
from dnascale.evaluate.detail import BaseLosses, Detail, take_apart
from dnascale.evaluate.loss import HeldOutLoss, held_out_loss
from dnascale.files import explained, write_whole
from dnascale.runs import Run

if TYPE_CHECKING:
    import torch

#: Baselines are fitted on at most this many training tokens: enough for their largest tables, bounded memory.
MAX_FIT_TOKENS = 100_000_000
#: Told (what, done, total): of windows, then of families of baselines.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """A model and its rivals on one split. `detail` only where a token is a base."""

    run: str
    step: int | None  # None of a model that is no run
    split: str
    model: HeldOutLoss
    baselines: list[Baseline]
    detail: Detail | None = None

    def to_dict(self) -> dict[str, Any]:
        model = asdict(self.model) | {"bits_per_base": self.model.bits_per_base}
        return {
            "run": self.run,
            "step": self.step,
            "split": self.split,
            "model": model,
            "baselines": [asdict(b) | {"bits_per_base": b.nats_per_base / math.log(2)} for b in self.baselines],
            "detail": None if self.detail is None else self.detail.to_dict(),
        }


def evaluate(
    run: Run, split: str = "valid", device: str = "auto", out: Path | None = None, progress: Progress | None = None
) -> Evaluation:
    """Scores every base of a split with a run's checkpoint, and fits and scores the baselines.

    Writes `out`, by default `evaluation-SPLIT.json` in the run folder (`step-STEP-evaluation-SPLIT.json` of a checkpoint that was asked
    for), and a `.png` of that name where matplotlib is installed. Raises UsageError, before it scores, when that cannot be written.
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
        run.model(), masking, run.config.data.separate_records, autocast=torch.bfloat16 if bf16 else None, device=chosen
    )
    model.to(chosen).eval()
    micro = run.config.train.micro_batch_tokens  # a run's own file has a number
    batch_windows = 1 if micro == "auto" else max(1, micro // run.config.model.context)
    of_step = f"{run.checkpoint.folder.name}-" if run.asked_for else ""
    return _score(
        str(run.folder), run.checkpoint.state.step, model.logits, reader, corpus, chosen, batch_windows, progress,
        out or run.folder / f"{of_step}evaluation-{split}.json",
    )  # fmt: skip


def evaluate_folder(
    path: Path,
    data: str,
    split: str = "valid",
    device: str = "auto",
    context: int | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """The same of any Hugging Face folder with a masked language model in which each base is one token, on a data set of characters.

    On windows of as many bases as a run with that `context` has, the same positions are hidden, and so both can be compared. Records
    are divided by the model's own separator, or by its token for N. `out`: the JSON file to write, and a picture beside it.
    Raises UsageError, DataError.
    """
    from dnascale.evaluate.language_model import load_model
    from dnascale.evaluate.likelihood import BATCH_TOKENS
    from dnascale.runs import open_dataset

    model = load_model(path, device, context=context)
    corpus = open_dataset(data)
    if not corpus.vocabulary.one_base_a_token or corpus.vocabulary.views > 1:
        raise UsageError(
            f"{data} has tokens of several bases ({corpus.vocabulary.name}): prepare it again with characters."
        )
    reader = corpus.held_out(split, model.context)
    if reader is None:
        raise DataError(
            f"{data} holds out no split '{split}' of {model.context:,} bases or more: --context is smaller."
        )
    batch_windows = max(1, BATCH_TOKENS[model.device.type] // model.context)
    vocabulary = corpus.vocabulary
    return _score(
        str(path), None, lambda ids: model.token_log_p(ids, vocabulary), reader, corpus, model.device,
        batch_windows, progress, out,
    )  # fmt: skip


def _score(
    name: str, step: int | None, logits: "Callable[[torch.Tensor], torch.Tensor]", reader: WindowReader, corpus: Corpus, device: "torch.device",
    batch_windows: int, progress: Progress | None, out: Path | None,
) -> Evaluation:  # fmt: skip
    """Scores, and writes the result where it is to be: first without its detail, which takes memory."""
    if out is not None:
        _check_writable(out.parent)
    done, total = 0, len(covering_windows(reader.shard_tokens, reader.context)[0])

    def advance(windows: int) -> None:
        nonlocal done
        done += windows
        if progress is not None:
            progress("evaluating windows", done, total)

    letters = corpus.vocabulary.one_base_a_token and corpus.vocabulary.views == 1
    losses = BaseLosses(reader) if letters else None
    loss = held_out_loss(
        logits, reader, corpus.vocabulary, device, batch_windows, progress=advance, note=losses.add if losses else None
    )
    if not math.isfinite(loss.nats_per_base):
        raise NumericsError(f"{name} gives a loss that is not finite: its weights are damaged.")
    families = itertools.count()
    sources = corpus.sources.values()
    rivals = Rivals(
        [record for one in sources for record in split_records(one, "train", MAX_FIT_TOKENS // len(sources))],
        progress=lambda what: progress(what, next(families), 3) if progress is not None else None,
    )
    baselines = rivals.score([record for one in reader.sources for record in split_records(one, reader.split)])
    result = Evaluation(name, step, reader.split, loss, baselines)
    _write(result, out)
    if losses is not None:
        names = [name for name, one in corpus.sources.items() if any(one is source for source in reader.sources)]
        result = replace(result, detail=take_apart(reader, losses, rivals.longest, names))
        _write(result, out)
    return result


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UsageError(
            f"{folder} cannot be written ({error.strerror}): name another place for the result with --out FILE.json."
        ) from None


def _write(result: Evaluation, out: Path | None) -> None:
    if out is None:
        return
    from dnascale.evaluate.figures import held_out, possible

    try:
        write_whole(out, (json.dumps(result.to_dict(), indent=1) + "\n").encode())
        if possible():
            held_out(result.to_dict(), out.with_suffix(".png"))
    except OSError as error:
        raise explained(error, out) from error
