"""`dnascale export`: a run's model as a plain Hugging Face folder that needs no dnascale."""

import json
import os
from pathlib import Path
from typing import Any

from dnascale import __version__
from dnascale.card import model_card
from dnascale.errors import CheckpointError, UsageError, first_line
from dnascale.faults import fault
from dnascale.files import whole_folder
from dnascale.runs import Run

#: Largest difference of a logit between ONNX Runtime and torch that is rounding.
_ONNX_TOLERANCE = 1e-3
#: Bytes of weights inside of an ONNX file, whose format ends at 2 GB; more lie beside it.
_MOST_IN_ONE = 1_800_000_000


def export(run: Run, out: Path, licence: str | None = None, shard_gb: float = 5.0, onnx: bool = False) -> Path:
    """Writes config, safetensors weights (fp32, in files of at most `shard_gb` GB), tokenizer and model card to `out`, then reads
    them back. `licence`: for the card. `onnx`: model.onnx too, whose logits are compared.

    `out` appears whole or not at all. Raises UsageError or SpaceError when it cannot be written, CheckpointError when the
    model read back differs.
    """
    import torch
    from transformers import AutoModelForMaskedLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one file, read in milliseconds
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which saving imports, tells of it
    model, vocabulary = run.model(), run.vocabulary()
    with whole_folder(out) as work:
        model.save_pretrained(work, max_shard_size=round(shard_gb * 1e9))
        vocabulary.tokenizer(run.config.model.context).save_pretrained(work)
        strands = {"reverse_complement": run.config.masking.reverse_complement}
        _clean_config(work / "config.json", strands | ({"keeps_u": True} if run.keeps_u() else {}))
        fault("export.write")
        (work / "README.md").write_text(model_card(run, licence))
        again = AutoModelForMaskedLM.from_pretrained(work).eval()
        sample = torch.arange(min(64, run.config.model.context)).remainder(len(vocabulary))[None]
        with torch.no_grad():
            difference = float((again(input_ids=sample).logits - model(input_ids=sample).logits).abs().max())
        if difference != 0.0:
            raise CheckpointError(f"the exported model differs from the trained one (logits by {difference:.2e}).")
        if onnx:
            _write_onnx(work, run.config.model.context)
    return out


def _clean_config(path: Path, trained: dict[str, bool]) -> None:
    """Leaves out what belongs to this machine and not to the model; adds on what it was `trained`: which strands, which letters."""
    values: dict[str, Any] = json.loads(path.read_text())
    for key in ("_name_or_path", "_attn_implementation", "attn_implementation"):
        values.pop(key, None)
    values |= trained
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def hub_token() -> str:
    """HF_TOKEN, and no other place. Raises UsageError without it."""
    if not (token := os.environ.get("HF_TOKEN")):
        raise UsageError(
            "--push needs a token that may write, in the environment: export HF_TOKEN=... (huggingface.co/settings/tokens)."
        )
    return token


def push(folder: Path, name: str, token: str, private: bool = False) -> str:
    """Uploads an exported folder to OWNER/NAME of the Hugging Face Hub, which is made if it is not there; gives its address.

    Raises UsageError when the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        address = str(api.create_repo(name, private=private, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=f"dnascale {__version__}")
    except Exception as error:  # of the Hub, or of whichever HTTP library its own has chosen
        raise UsageError(
            f"{folder} is written, but was not pushed to {name}: {first_line(error)} To try again: hf upload {name} {folder}"
        ) from None
    return address


def _write_onnx(folder: Path, context: int) -> None:
    """model.onnx: input_ids, attention_mask int64 [B, S] -> logits fp32 [B, S, V], for any B and any S up to the context."""
    import logging
    import warnings

    import torch
    from transformers import AutoModelForMaskedLM

    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError:
        raise UsageError("--onnx needs onnxruntime and onnxscript: pip install 'dnascale[onnx]'.") from None

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits

    model = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    ids = torch.zeros(2, min(16, context), dtype=torch.int64)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=context)}
    path = folder / "model.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits(), (), str(path), kwargs=inputs, dynamo=True, input_names=list(inputs), output_names=["logits"],
            dynamic_shapes=dict.fromkeys(inputs, axes), external_data=4 * sum(p.numel() for p in model.parameters()) > _MOST_IN_ONE, verbose=False,
        )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, length in ((1, min(5, context)), (2, min(512, context))):
        ids = torch.arange(batch * length).remainder(4).view(batch, length)
        mask = torch.ones_like(ids)
        mask[-1, length // 2 :] = 0
        with torch.no_grad():
            wanted = model(input_ids=ids, attention_mask=mask).logits
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        difference = float((torch.from_numpy(found) - wanted)[mask.bool()].abs().max())
        if not difference < _ONNX_TOLERANCE:
            raise CheckpointError(f"model.onnx differs from the trained model (logits by {difference:.2e}).")
