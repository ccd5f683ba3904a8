"""The folder of a run: the configuration it began with, where it is run, and who may write to it."""

import json
import os
from pathlib import Path
from typing import TextIO

from dnascale.config import Config, changes, parse, to_yaml
from dnascale.data.corpus import Corpus
from dnascale.data.remote import is_remote
from dnascale.data.transport import without_secrets
from dnascale.errors import UsageError
from dnascale.files import explained, hold, read_tree, write_whole
from dnascale.train.environment import environment
from dnascale.train.mirror import fetch_config

#: Keys of the model that matter to its fresh weights alone. With any other, its checkpoints are of another model.
_OF_A_BEGINNING = ("model.init_from:", "model.initializer_range:")
_SIZES = ("model.hidden_size:", "model.intermediate_size:", "model.layers:")


def settle_config(run: Path, config: Config) -> Config:
    """The configuration to use: `config`, with the steps that the run began with when it is being resumed."""
    path = run / "config.yaml"
    if run.exists() and not run.is_dir():
        raise UsageError(f"run.dir={run} is a file: choose another folder.")
    if not path.is_file():
        # A start that was killed may have left its lock, and what it had fetched from a mirror.
        begun = {".lock"} | ({"checkpoints"} if config.checkpoint.mirror is not None else set())
        if run.is_dir() and any(path.name not in begun and "partial" not in path.name for path in run.iterdir()):
            raise UsageError(f"run.dir={run} is not empty and holds no run: choose another folder.")
        # Of a run whose folder was lost, the mirror has the configuration too.
        if config.checkpoint.mirror is None or not fetch_config(config.checkpoint.mirror, path):
            return config
    before = parse(read_tree(path), str(path))
    length = ("minutes", "epochs")
    if config.train.steps is None:
        if any(getattr(config.train, key) != getattr(before.train, key) for key in length):
            before = before.with_train(steps=None)
        else:
            config = config.with_train(steps=before.train.steps)
    if (differing := changes(before, config)) and not config.run.allow_change:
        model = [line for line in differing if line.startswith("model.") and not line.startswith(_OF_A_BEGINNING)]
        if model and any((run / "checkpoints").glob("step-*")):
            mend = "Its checkpoints are of another model: use another run.dir."
            if not any(line.startswith(_SIZES) for line in model):
                mend = f"{mend[:-1]} (model.init_from={run} begins with their weights)."
        else:
            mend = "Use another run.dir, or run.allow_change=true to go on with the new one."
        raise UsageError(f"{run} was begun with another configuration ({'; '.join(differing)}). {mend}")
    return config


def hold_run(run: Path) -> TextIO:
    """Makes the folder and claims it for this process. Raises UsageError when another run writes there."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = hold(run)
    except OSError as error:
        raise explained(error, run) from error
    # Processes that read ahead may outlive this one by seconds, and would hold it too.
    os.register_at_fork(after_in_child=lock.close)
    return lock


def write_run_files(run: Path, config: Config, corpus: Corpus, step: int) -> None:
    """config.yaml once, and again under another name for what an allowed change replaces; the rest each start."""
    alphabets = sorted({dataset.options.get("alphabet", "iupac") for dataset in corpus.sources.values()})
    described = environment() | {
        "data": corpus.location, "data_fingerprint": corpus.fingerprint, "alphabets": alphabets,
    }  # fmt: skip
    kept = as_recorded(config)
    path = run / "config.yaml"
    try:
        before = path.read_text() if path.is_file() else None
        if before != to_yaml(kept):
            # There already from a start that took no step: the one that did stays.
            until = run / f"config-until-step-{step:08d}.yaml"
            if before is not None and not until.exists():
                write_whole(until, before.encode())
            write_whole(path, to_yaml(kept).encode())
        write_whole(run / "vocabulary.json", (json.dumps(corpus.vocabulary.to_json()) + "\n").encode())
        write_whole(run / "environment.json", (json.dumps(described, indent=1) + "\n").encode())
        (run / "checkpoints").mkdir(exist_ok=True)
    except OSError as error:
        raise explained(error, run) from error


def as_recorded(config: Config) -> Config:
    """What is written down of a configuration: where the data really are, but not the credentials of a URL."""

    def resolved(location: str) -> str:
        return without_secrets(location) if is_remote(location) else str(Path(location).resolve())

    path, sources = config.data.path, config.data.sources
    data = config.data.model_copy(
        update={
            "path": path and resolved(path),
            "sources": sources and {n: s.model_copy(update={"path": resolved(s.path)}) for n, s in sources.items()},
        }
    )
    mirror = config.checkpoint.mirror
    if mirror is not None and is_remote(mirror):
        mirror = without_secrets(mirror)
    return config.model_copy(
        update={
            "data": data,
            "checkpoint": config.checkpoint.model_copy(update={"mirror": mirror}),
            "run": config.run.model_copy(update={"allow_change": False}),
        }
    )


def require_visible(run: Path) -> None:
    """Raises UsageError on a host that does not see what rank 0 wrote."""
    if not (run / "config.yaml").is_file():
        raise UsageError(f"run.dir={run} is not a folder that all hosts share: each must see what rank 0 writes there.")
