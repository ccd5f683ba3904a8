"""Checkpoints: whole or not there, of no engine and no number of ranks.

    checkpoints/step-00001000/
        MANIFEST.json                       what is in it; written last
        rank-00000-of-00002.safetensors     fragments of fp32 weights and optimizer state, keyed `kind/parameter@start`

Here is what they hold and how they are read; saving.py writes them. Loading verifies every digest first, and the newest valid
checkpoint wins.
"""

import hashlib
import json
import re
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnascale.errors import CheckpointError, DnascaleWarning
from dnascale.files import json_digest
from dnascale.train.state import TrainState

if TYPE_CHECKING:
    import torch

    from dnascale.train.engines import Engine

FORMAT = "dnascale-checkpoint"
VERSION = 4
#: Of the model of versions before 4, which do not say it: ModernBERT's own.
_ROPE = {
    "full_attention": {"rope_type": "default", "rope_theta": 160_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Identity:
    """What a checkpoint must share with a run to be continued by it."""

    model: dict[str, Any]  # the Hugging Face configuration that decides the function
    vocabulary: str
    data: str  # fingerprint of the data set


class Damaged(CheckpointError):
    """A checkpoint that is not as it was written."""

    def __init__(self, folder: Path, sentence: str) -> None:
        super().__init__(sentence)
        self.folder = folder


class Newer(CheckpointError):
    """A checkpoint that a later version of this program has written."""


class Checkpoint:
    """A committed checkpoint: its manifest, and its tensors by parameter and range."""

    def __init__(self, folder: Path) -> None:
        """Reads the manifest. Raises CheckpointError when it is missing, damaged or newer than this program."""
        self.folder = folder
        path = folder / "MANIFEST.json"
        try:
            self.manifest: dict[str, Any] = json.loads(path.read_text())
            if self.manifest["format"] != FORMAT or self.manifest["version"] > VERSION:
                raise Newer(
                    f"{path} is of format {self.manifest['format']} {self.manifest['version']}, this dnascale reads "
                    f"{FORMAT} {VERSION}: upgrade dnascale."
                )
            body = {k: v for k, v in self.manifest.items() if k != "sha256"}
            if json_digest(body) != self.manifest["sha256"]:
                raise Damaged(folder, f"{path} is damaged: it does not match its own digest.")
            self.state = TrainState(**self.manifest["state"])
            identity = Identity(**self.manifest["identity"])
            self.identity = replace(identity, model={"rope_parameters": _ROPE} | identity.model)
            #: Name of the optimizer whose state is in it. Version 1 knew one.
            self.optimizer: str = self.manifest.get("optimizer", "adamw")
        except FileNotFoundError:
            raise CheckpointError(f"{folder} is no checkpoint: it has no MANIFEST.json.") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError) as error:
            raise Damaged(folder, f"{path} is damaged ({type(error).__name__}: {error}).") from None
        self._parts: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for fragment in self.manifest["fragments"]:
            self._parts.setdefault((fragment["kind"], fragment["parameter"]), []).append(fragment)

    def verify(self) -> None:
        """Compares size and SHA-256 of every file. Raises CheckpointError naming the first that differs."""
        for file in self.manifest["files"]:
            path = self.folder / file["name"]
            if not path.is_file():
                raise Damaged(self.folder, f"{path} is missing.")
            if (size := path.stat().st_size) != file["bytes"]:
                raise Damaged(self.folder, f"{path} has {size:,} bytes, its manifest says {file['bytes']:,}.")
            try:
                with path.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
            if digest != file["sha256"]:
                raise Damaged(self.folder, f"{path} does not match its SHA-256: it is damaged.")

    def require(self, identity: Identity, shapes: dict[str, tuple[int, ...]]) -> None:
        """Raises CheckpointError that says in what the checkpoint differs from the run that wants to load it."""
        mine, theirs = identity.model, self.identity.model
        differing = [f"{k} {theirs.get(k)} -> {v}" for k, v in mine.items() if theirs.get(k) != v]
        saved = {p["name"]: tuple(p["shape"]) for p in self.manifest["parameters"]}
        if differing or saved != shapes:
            raise CheckpointError(
                f"{self.folder} is a checkpoint of another model ({', '.join(differing) or 'other parameters'}): "
                "give this run its own run.dir."
            )
        if self.identity.vocabulary != identity.vocabulary:
            raise CheckpointError(f"{self.folder} was trained with another vocabulary: give this run its own run.dir.")
        if self.identity.data != identity.data:
            raise CheckpointError(
                f"{self.folder} was trained on other data (fingerprint {self.identity.data[:12]}, now "
                f"{identity.data[:12]}): its place in the data has no meaning here. Give this run its own run.dir."
            )

    def read(self, kind: str, parameter: str, start: int, numel: int) -> "torch.Tensor":
        """fp32 [numel]: elements [start, start + numel) of a parameter's `kind`, put together from fragments.

        Raises CheckpointError when the fragments do not cover the range.
        """
        import torch
        from safetensors import safe_open

        out = torch.empty(numel, dtype=torch.float32)
        covered = 0
        for part in self._parts.get((kind, parameter), []):
            begin, end = max(start, part["start"]), min(start + numel, part["start"] + part["numel"])
            if begin >= end:
                continue
            with safe_open(self.folder / part["file"], framework="pt") as file:
                piece = file.get_slice(part["key"])[begin - part["start"] : end - part["start"]]
            out[begin - start : end - start] = piece
            covered += end - begin
        if covered != numel:
            raise CheckpointError(f"{self.folder} lacks {numel - covered:,} of {numel:,} values of {kind} {parameter}.")
        return out

    def weights(self) -> "dict[str, torch.Tensor]":
        """All fp32 weights by Hugging Face name, in their shapes."""
        return self.tensors("weight")

    def kinds(self) -> list[str]:
        """`weight`, and what the optimizer keeps for any parameter."""
        return list(dict.fromkeys(fragment["kind"] for fragment in self.manifest["fragments"]))

    def tensors(self, kind: str) -> "dict[str, torch.Tensor]":
        """All fp32 tensors of a kind by the Hugging Face name of their parameter, in their shapes."""
        import math

        found = {}
        for parameter in self.manifest["parameters"]:
            name = parameter["name"]
            # Versions that do not say shapes by kind knew AdamW alone, whose moments have that of the weight.
            shapes = parameter.get("kinds") or dict.fromkeys(self.kinds(), parameter["shape"])
            if kind in shapes:
                found[name] = self.read(kind, name, 0, math.prod(shapes[kind])).reshape(shapes[kind])
        return found


def load(checkpoint: Checkpoint, engine: "Engine", state: TrainState) -> None:
    """Puts the saved weights, and the optimizer's state unless it begins anew, into the engine, whatever engine and world
    size saved them. Collective. `state`: as `resume_state` gives it.
    """
    from dnascale.train.distributed import together

    begun = state.optimizer_from == state.step

    def fill() -> None:
        for fragment in engine.held():
            if fragment.kind == "weight" or not begun:
                value = checkpoint.read(fragment.kind, fragment.parameter, fragment.start, fragment.numel)
                engine.put(fragment, value)

    together(engine.accelerator, fill)
    engine.loaded(state.step - state.optimizer_from - state.skipped)


def resume_state(checkpoint: Checkpoint, optimizer: str, restart: bool) -> TrainState:
    """The state to go on from with an optimizer of this name, which `restart` lets begin anew in the middle of a run.

    Raises CheckpointError when the checkpoint is of another optimizer and `restart` is not asked for.
    """
    state = checkpoint.state
    if checkpoint.optimizer == optimizer:
        return state
    if not restart:
        raise CheckpointError(
            f"{checkpoint.folder} was saved with optimizer.name={checkpoint.optimizer}, whose state {optimizer} cannot use: go on "
            f"with {checkpoint.optimizer}, or say optimizer.restart=true to keep the weights and let {optimizer} begin anew."
        )
    return replace(state, optimizer_from=state.step, skipped=0)


def committed(folder: Path) -> list[Path]:
    """Checkpoint folders under `folder`, oldest first. Names alone: they may be damaged."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir())


def step_of(path: Path) -> int:
    """Of a checkpoint's folder."""
    return int(path.name.removeprefix("step-"))


def newest_valid(folder: Path) -> tuple[Checkpoint | None, list[CheckpointError]]:
    """The newest checkpoint that passes verification, and for each newer one why it did not."""
    rejected: list[CheckpointError] = []
    for path in reversed(committed(folder)):
        try:
            checkpoint = Checkpoint(path)
            if checkpoint.state.step != step_of(path):
                raise Damaged(path, f"{path} holds step {checkpoint.state.step}: somebody renamed it.")
            checkpoint.verify()
            return checkpoint, rejected
        except CheckpointError as error:
            rejected.append(error)
    return None, rejected


def set_aside(damaged: list[CheckpointError]) -> list[str]:
    """Renames the folders of damaged checkpoints, so that they are in nobody's way and can be looked at; a sentence for each."""
    sentences = []
    for error in damaged:
        aside = None
        if isinstance(error, Damaged):
            aside = error.folder.with_name(f"damaged-{error.folder.name}")
            try:
                error.folder.rename(aside)
            except OSError:  # not ours, or there is one already
                aside = None
        sentences.append(f"{error} {f'It is now {aside.name}. ' if aside else ''}The one before is used.")
    return sentences


def require_newest(run: Path) -> Checkpoint:
    """The newest valid checkpoint of a run folder; warns of newer ones that are damaged. Raises CheckpointError when there is none."""
    checkpoint, rejected = newest_valid(run / "checkpoints")
    if checkpoint is None:
        detail = " ".join(map(str, rejected)) or f"{run / 'checkpoints'} holds none."
        raise CheckpointError(f"{run} has no valid checkpoint. {detail}")
    for error in rejected:
        warnings.warn(f"{error} {checkpoint.folder.name} is used.", DnascaleWarning, stacklevel=2)
    return checkpoint
