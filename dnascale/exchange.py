"""Checkpoints for other programs, and of other programs: `dnascale ckpt convert` and `dnascale ckpt import`."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dnascale.errors import CheckpointError, DnascaleError, UsageError, first_line
from dnascale.files import check_new_folder, whole_folder
from dnascale.runs import Run

if TYPE_CHECKING:
    import torch

#: A parameter that every ModernBERT has: what stands before its name stands before all of them.
_KNOWN = "model.embeddings.tok_embeddings.weight"
_PICKLES = ("pytorch_model.bin", "pytorch_model-*.bin")


def convert(run: Run, out: Path) -> list[Path]:
    """Writes a checkpoint as one safetensors file a kind (weight, exp_avg, ...), fp32 tensors by Hugging Face name in their
    shapes, and state.json. Gives the files of tensors. `out` appears whole or not at all. Raises UsageError, SpaceError.
    """
    from safetensors.torch import save_file

    checkpoint = run.checkpoint
    kinds = checkpoint.kinds()
    with whole_folder(out) as work:
        for kind in kinds:
            save_file(checkpoint.tensors(kind), work / f"{kind}.safetensors", {"format": "pt"})
        described = {key: checkpoint.manifest[key] for key in ("created_by", "state", "optimizer", "identity")}
        (work / "state.json").write_text(json.dumps(described, indent=1) + "\n")
    return [out / f"{kind}.safetensors" for kind in kinds]


def import_weights(source: Path, out: Path, model: Path | None, trust_pickle: bool) -> str:
    """Writes the fp32 weights of a DeepSpeed checkpoint (ZeRO 0 to 3), or of a Hugging Face folder with pickled weights, as a
    Hugging Face folder with safetensors, which `model.init_from` takes. Says what was read.

    `model`: a folder with the config.json and the tokenizer, where `source` has none. Raises UsageError when there is
    nothing to import or its pickles are not trusted, CheckpointError when the weights are not those of that model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer
    from transformers.initialization import no_init_weights
    from transformers.utils import logging

    check_new_folder(out)
    if not source.is_dir():
        raise UsageError(f"{source} is no folder.")
    tag = _deepspeed_tag(source)
    pickles = sorted(path for pattern in _PICKLES for path in source.glob(pattern))
    if tag is None and not pickles:
        if any(source.glob("*.safetensors")):
            raise UsageError(f"{source} has safetensors: model.init_from={source} reads them as they are.")
        raise UsageError(f"{source} has neither a DeepSpeed checkpoint (*_model_states.pt) nor a pytorch_model.bin.")
    if not trust_pickle:
        raise UsageError(
            f"the weights in {source} are pickles, which run whatever code their maker put there when they are read: say "
            "--trust-pickle if they are yours."
        )
    described = model or source
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(described, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(described, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(
            f"{described} has no configuration or tokenizer ({first_line(error)}): --model names a folder that has."
        ) from None
    with _unreadable(source):
        weights = _named(_of_deepspeed(tag) if tag is not None else _of_pickles(pickles), source)
    with no_init_weights():  # all are given, or it is refused
        hf = AutoModelForMaskedLM.from_config(config, dtype=torch.float32)  # whatever the file says of its own
    with _refused(source, described):
        missing, unexpected = hf.load_state_dict(weights, strict=False)
        tied = {name for name in missing if name.startswith("decoder.weight")}
        if unexpected or set(missing) - tied:
            lacking = sorted(set(missing) - tied)
            raise RuntimeError(
                f"not there: {', '.join(lacking) or 'none'}; not known: {', '.join(unexpected) or 'none'}"
            )
    hf.tie_weights()
    with whole_folder(out) as work:
        hf.save_pretrained(work)
        tokenizer.save_pretrained(work)
    count = sum(p.numel() for p in hf.parameters())
    return f"{out}: {count:,} parameters of {tag or source}"


@contextlib.contextmanager
def _unreadable(source: Path) -> Iterator[None]:
    try:
        yield
    except DnascaleError:
        raise
    except Exception as error:  # whatever reading a pickle may raise
        raise CheckpointError(
            f"the weights in {source} cannot be read ({type(error).__name__}: {first_line(error)}): copy them again."
        ) from None


@contextlib.contextmanager
def _refused(source: Path, described: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        sentence = " ".join(str(error).split())
        raise CheckpointError(
            f"the weights in {source} are not of the model of {described}: {sentence[:400]}"
        ) from None


def _deepspeed_tag(source: Path) -> Path | None:
    """The folder of a DeepSpeed checkpoint in or below `source`: the only one, or the one that its only `latest` names."""
    tags = sorted({path.parent for path in source.rglob("*_model_states.pt")})
    if len(tags) <= 1:
        return tags[0] if tags else None
    named = {latest.parent / latest.read_text().strip() for latest in source.rglob("latest")} & set(tags)
    if len(named) == 1:
        return named.pop()
    files = "several files" if named else "no file"
    raise UsageError(f"{source} has {len(tags)} DeepSpeed checkpoints and {files} `latest`: name one, e.g. {tags[-1]}.")


def _of_deepspeed(tag: Path) -> "dict[str, torch.Tensor]":
    import torch

    if not any(tag.glob("*_optim_states.pt")):  # without ZeRO each rank has all weights
        file = sorted(tag.glob("*_model_states.pt"))[0]
        module: dict[str, torch.Tensor] = torch.load(file, map_location="cpu", weights_only=False)["module"]
        return module
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError:
        raise UsageError("importing a ZeRO checkpoint needs DeepSpeed: pip install 'dnascale[deepspeed]'.") from None
    with contextlib.redirect_stdout(io.StringIO()):
        found: Any = get_fp32_state_dict_from_zero_checkpoint(str(tag.parent), tag.name)
    return dict(found)


def _of_pickles(files: list[Path]) -> "dict[str, torch.Tensor]":
    import torch

    weights: dict[str, torch.Tensor] = {}
    for file in files:
        weights |= torch.load(file, map_location="cpu", weights_only=False)
    return weights


def _named(weights: "dict[str, torch.Tensor]", source: Path) -> "dict[str, torch.Tensor]":
    """By Hugging Face name: without what compilation and wrappers put before it."""
    plain = {name.replace("_orig_mod.", ""): value for name, value in weights.items()}
    known = next((name for name in plain if name.endswith(_KNOWN)), None)
    if known is None:
        listed = ", ".join(list(plain)[:3])
        raise CheckpointError(f"the weights in {source} are of no ModernBERT: their names begin with {listed}.")
    before = known.removesuffix(_KNOWN)
    return {name.removeprefix(before): value.float() for name, value in plain.items() if name.startswith(before)}
