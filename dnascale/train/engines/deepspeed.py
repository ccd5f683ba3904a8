"""The configuration that DeepSpeed gets: one of ds_configs/ or the user's own, with every `auto` filled in from the run's."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dnascale.config import Config
from dnascale.errors import UsageError

#: The files of ds_configs/.
STAGES = ("zero1", "zero2", "zero3", "zero3_offload", "zero3_nvme")
#: Micro-batches whose gradients may be added up in bf16: errors of 0.7 % at 16, 2 % at 64, 14 to 23 % at 512 (measured, tiny model).
_MOST_IN_BF16 = 64


def deepspeed_config(config: Config, micro_windows: int, accumulation: int, world: int) -> dict[str, Any] | None:
    """The DeepSpeed configuration that the run asks for, `auto` values filled in; None for the plain engine.

    `train.engine` names one of ds_configs/ or a file; `auto` follows `accelerate launch --use_deepspeed`.
    """
    path = _config_file(config.train.engine)
    if path is None:
        return None
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a DeepSpeed configuration: {error}") from None
    if config.guard.spike is not None:
        raise UsageError(
            "guard.spike needs the gradient's norm before the step, which DeepSpeed does not give: leave it out, or train.engine=plain."
        )
    stage = values.get("zero_optimization", {}).get("stage") if isinstance(values, dict) else None
    if stage not in (1, 2, 3):
        raise UsageError(
            f"{path} must set zero_optimization.stage to 1, 2 or 3, not {stage}; without ZeRO use train.engine=plain."
        )
    for section in ("optimizer", "scheduler", "fp16"):
        if section in values:
            raise UsageError(
                f"{path} has a section '{section}', which the run's own configuration decides: leave it out."
            )
    bf16 = config.train.precision == "bf16"
    if values.setdefault("bf16", {}).setdefault("enabled", "auto") not in ("auto", bf16):
        raise UsageError(
            f'{path} sets bf16.enabled={values["bf16"]["enabled"]}, the run has train.precision={config.train.precision}: write "auto".'
        )
    values["bf16"]["enabled"] = bf16
    for section, key in (("bf16", "check_grad_overflow"), ("zero_optimization", "compute_grad_norm")):
        if values[section].get(key, True) is not True:
            raise UsageError(
                f"{path} sets {section}.{key}={json.dumps(values[section][key])}: a gradient that is not finite would then be trained on. Leave it out."
            )
    _add_up_in_fp32(values, path, accumulation, bf16)
    if config.train.micro_batch_tokens != "auto":  # else it is known later
        require_few_in_bf16(config, values, accumulation)
    sizes = batch_sizes(micro_windows, accumulation, world)
    filled: dict[str, float] = {**sizes, "gradient_clipping": config.optimizer.gradient_clip}
    for key, value in filled.items():
        if values.setdefault(key, "auto") not in ("auto", value):
            raise UsageError(f'{path} sets {key}={values[key]}, the run\'s configuration gives {value}: write "auto".')
        values[key] = value
    on_disk = values["zero_optimization"].get("offload_optimizer", {}).get("device") == "nvme"
    if on_disk and config.optimizer.name != "adamw":
        raise UsageError(
            f"{path} keeps the optimizer's state on NVMe, where {config.optimizer.name} cannot reach what it needs of whole "
            "parameters: use optimizer.name=adamw, or offload to memory (zero3_offload)."
        )
    for what in ("offload_optimizer", "offload_param"):
        if (offload := values["zero_optimization"].get(what, {})).get("nvme_path") == "auto":
            offload["nvme_path"] = str(_scratch(config.run.dir))
    if left := list(_autos(values)):
        raise UsageError(
            f'{path} says "auto" where the run has nothing to fill in: {", ".join(left)}. Leave them out, or write numbers.'
        )
    return values


def _add_up_in_fp32(values: dict[str, Any], path: Path, accumulation: int, bf16: bool) -> None:
    """Where many gradients are added up in bf16, which DeepSpeed does unless told, what is small beside the sum is lost."""
    kind = values.get("data_types", {}).get("grad_accum_dtype")
    if not bf16 or accumulation == 1:
        return
    if values["zero_optimization"]["stage"] > 1:
        if kind is None:
            values.setdefault("data_types", {})["grad_accum_dtype"] = "fp32"
        return
    # In stage 1 DeepSpeed would take another optimizer for it, whose pieces are not those of a checkpoint.
    if kind == "fp32":
        raise UsageError(
            f"{path} sets data_types.grad_accum_dtype={kind} in stage 1, which changes DeepSpeed's optimizer: use stage 2."
        )


def require_few_in_bf16(config: Config, values: dict[str, Any], accumulation: int) -> None:
    """Raises UsageError where stage 1 would add up the gradients of more micro-batches in bf16 than keeps their sum."""
    alone = config.train.precision == "bf16" and values["zero_optimization"]["stage"] == 1
    if alone and accumulation > _MOST_IN_BF16:
        path = _config_file(config.train.engine)
        assert path is not None
        raise UsageError(
            f"train.engine={path.stem} adds up the gradients of {accumulation} micro-batches in bf16, which loses part of them "
            f"(a fifth of 512): use train.engine=zero2, or micro-batches so large that at most {_MOST_IN_BF16} are added up."
        )


def _autos(values: dict[str, Any], before: str = "") -> Iterator[str]:
    """The keys, with those that they are under, whose value is "auto"."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _autos(value, f"{before}{key}.")
        elif value == "auto":
            yield before + key


def batch_sizes(micro_windows: int, accumulation: int, world: int) -> dict[str, int]:
    """How a step is divided, in DeepSpeed's keys."""
    return {
        "train_micro_batch_size_per_gpu": micro_windows,
        "gradient_accumulation_steps": accumulation,
        "train_batch_size": micro_windows * accumulation * world,
    }


def _scratch(run: str) -> Path:
    """A folder of this run alone on the node's own disk (TMPDIR)."""
    digest = hashlib.sha256(str(Path(run).resolve()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"dnascale-offload-{digest}"


def _config_file(engine: str) -> Path | None:
    if engine == "auto":
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
            return None
        if file := os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"):
            return Path(file)
        engine = f"zero{os.environ.get('ACCELERATE_DEEPSPEED_ZERO_STAGE', '2')}"
    if engine == "plain":
        return None
    if engine in STAGES:
        return Path(__file__).parents[2] / "ds_configs" / f"{engine}.json"
    if engine.endswith(".json"):
        return Path(engine)
    raise UsageError(f"train.engine={engine} is none of auto, plain, {', '.join(STAGES)} and no .json file.")
