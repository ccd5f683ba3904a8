"""The configuration of a run: typed, with units, read from YAML and `key=value` overrides.

Precedence: defaults here < preset < the user's YAML < overrides on the command line. Unknown keys are errors.
"""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from dnascale.errors import UsageError

PRESETS = Path(__file__).parent / "model" / "presets"


#: How much of a running mean stays at each step.
_Decay = Annotated[float, Field(ge=0, lt=1)]


CompileMode = Literal["layers", "whole"]
FlashAttention = Literal["torch", "FA3", "FA4"]
ScheduleShape = Literal["wsd", "wsd-sqrt", "cosine", "linear", "constant"]
OptimizerName = Literal["adamw", "stable_adamw", "muon", "adafactor"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceConfig(_Section):
    path: str = Field(description="data set folder or URL")
    weight: PositiveFloat | None = Field(
        None, description="relative number of its windows; give all sources one, or none"
    )


class DataConfig(_Section):
    path: str | None = Field(None, description="data set: a folder made by `dnascale prepare`, or its URL")
    sources: dict[str, SourceConfig] | None = Field(None, description="several data sets by name, in place of path")
    temperature: PositiveFloat = Field(
        1.0, description="sources without weights are drawn as tokens^(1/temperature): 1 by size, more is more even"
    )
    lanes: PositiveInt | None = Field(
        None, description="read this many places of the data at a time, few shards at once; null = shuffle all of it"
    )
    lane_windows: PositiveInt = Field(16_384, description="windows shuffled with each other in a lane")
    verify: Literal["checksum", "start", "size"] = Field(
        "checksum",
        description="each block is checked before it is first used, all of them at the start, or only sizes are",
    )
    workers: NonNegativeInt = Field(0, description="processes a rank that read ahead, for disks slower than the model")
    cache: str | None = Field(None, description="folder for data behind a URL; null = ~/.cache/dnascale")
    cache_limit_gb: PositiveFloat | None = Field(None, description="size that this folder is kept under, in 10^9 bytes")
    separate_records: bool = Field(True, description="records in one window do not attend to each other")
    allow_short_records: bool = Field(False, description="accept a context longer than every training record")

    @model_validator(mode="after")
    def _sources(self) -> "DataConfig":
        if (self.path is None) == (not self.sources):
            raise ValueError(
                "say what to train on: data.path (a data set folder or URL), or data.sources, and not both"
            )
        given = [source.weight is not None for source in (self.sources or {}).values()]
        if any(given) and not all(given):
            raise ValueError("give every one of data.sources a weight, or none of them")
        if self.temperature != 1.0 and (not self.sources or any(given)):
            raise ValueError("data.temperature is for several data.sources without weights")
        if self.lanes is None and "lane_windows" in self.model_fields_set and self.lane_windows != 16_384:
            raise ValueError("data.lane_windows needs data.lanes")
        return self

    def locations(self) -> dict[str, str]:
        """Folder or URL of each source by name; a single one is called data."""
        if self.sources:
            return {name: source.path for name, source in self.sources.items()}
        assert self.path is not None
        return {"data": self.path}

    def weights(self) -> dict[str, float] | None:
        """Of each source by name, if they are given."""
        of_each = {name: source.weight for name, source in (self.sources or {}).items()}
        return {name: weight for name, weight in of_each.items() if weight is not None} or None


class ModelConfig(_Section):
    hidden_size: PositiveInt = Field(description="width of the residual stream")
    layers: PositiveInt = Field(description="transformer blocks")
    heads: PositiveInt = Field(description="attention heads; each has hidden_size / heads dimensions, an even number")
    intermediate_size: PositiveInt = Field(description="width of the gated MLP")
    context: PositiveInt = Field(description="window length in tokens")
    local_attention: int = Field(128, ge=2, description="window of local layers in tokens, both sides together")
    global_every: PositiveInt = Field(3, description="every n-th layer attends globally")
    global_rope_theta: PositiveFloat = Field(
        160_000.0,
        description="base of the rotary embedding in global layers; below 1 it turns faster than 1 radian a token",
    )
    local_rope_theta: PositiveFloat = Field(10_000.0, description="the same in local layers")
    initializer_range: PositiveFloat = Field(0.02, description="standard deviation of fresh weights")
    init_from: str | None = Field(
        None, description="begin with the weights of this run folder, or Hugging Face folder or name; the rest is fresh"
    )

    @property
    def global_layers(self) -> int:
        """How many layers attend globally; the first does."""
        return -(-self.layers // self.global_every)

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelConfig":
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"model.hidden_size={self.hidden_size} must be an even multiple of model.heads={self.heads} (rotary "
                "embeddings)"
            )
        return self


class MaskingConfig(_Section):
    rate: float = Field(0.2, gt=0, le=0.9, description="share of a window's tokens that are predicted")
    replace_with_mask: float = Field(0.8, ge=0, le=1, description="of these, the share shown as [MASK]")
    replace_with_random: float = Field(0.1, ge=0, le=1, description="of these, the share shown as a random base")
    reverse_complement: bool = Field(False, description="show half of the windows as their other strand")
    repeat_weight: float = Field(1.0, ge=0, description="loss weight of soft-masked bases")

    @model_validator(mode="after")
    def _shares(self) -> "MaskingConfig":
        if self.replace_with_mask + self.replace_with_random > 1:
            raise ValueError("masking.replace_with_mask + masking.replace_with_random must not exceed 1")
        return self


class OptimizerConfig(_Section):
    name: OptimizerName = Field("adamw", description="the same steps on every engine, within rounding")
    learning_rate: PositiveFloat = Field(
        1e-3, description="at the peak of the schedule; on the scale of AdamW for all of them"
    )
    betas: tuple[_Decay, _Decay] = Field(
        (0.9, 0.98), description="how much of the running means of gradient and square stays at each step"
    )
    eps: PositiveFloat = Field(1e-8, description="added to the root of the mean square")
    momentum: _Decay = Field(0.95, description="of muon's matrices; the rest has betas")
    weight_decay: float = Field(0.01, ge=0, description="not applied to norms and biases")
    gradient_clip: float = Field(1.0, ge=0, description="largest global gradient norm; 0 = no clipping")
    restart: bool = Field(
        False, description="go on from a checkpoint of another optimizer: keep the weights, begin with fresh moments"
    )


class StageConfig(_Section):
    """A part of a run; what it does not say is as in the rest of the configuration."""

    tokens: PositiveInt | None = Field(None, description="its length; the last stage has none and goes on to the end")
    global_batch_tokens: PositiveInt | None = Field(None, description="in place of train.global_batch_tokens")
    context: PositiveInt | None = Field(None, description="window length, a divisor of model.context")
    masking_rate: float | None = Field(None, gt=0, le=0.9, description="in place of masking.rate")


class ScheduleConfig(_Section):
    shape: ScheduleShape = Field(
        "wsd",
        description="of the learning rate after the warm-up: wsd and wsd-sqrt stay, then go down; linear and cosine go down",
    )
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps in linear warm-up")
    decay: float = Field(
        0.2, ge=0, le=1, description="share of the steps in which wsd and wsd-sqrt go down, at the end"
    )
    final: float = Field(
        0.0, ge=0, le=1, description="learning rate at the end, as a share of the peak; not of constant"
    )
    stages: list[StageConfig] = Field(
        [], description="batch, context and masking rate that change over the run, in order"
    )

    @model_validator(mode="after")
    def _shares(self) -> "ScheduleConfig":
        if self.shape.startswith("wsd") and self.warmup + self.decay > 1:
            raise ValueError("schedule.warmup + schedule.decay must not exceed 1")
        for number, stage in enumerate(self.stages):
            if (stage.tokens is None) != (number == len(self.stages) - 1):
                raise ValueError(
                    f"schedule.stages[{number}] must {'have tokens, its length' if stage.tokens is None else 'have no tokens'}: "
                    "every stage but the last has a length, and the last goes on to the end of the run"
                )
        return self


class TrainConfig(_Section):
    steps: PositiveInt | None = Field(None, description="optimizer steps; wins over minutes and epochs")
    minutes: PositiveFloat | None = Field(
        None, description="wall time of the steps, whose number a short timing decides; wins over epochs"
    )
    epochs: PositiveFloat | None = Field(None, description="passes over the training split")
    global_batch_tokens: PositiveInt = Field(description="tokens of one optimizer step over all devices")
    micro_batch_tokens: PositiveInt | Literal["auto"] = Field(
        description="tokens of one forward pass on one device; auto = the most that every device has memory for"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="of matrix products; auto = bf16 where the device is faster with it, else fp32"
    )
    compile: CompileMode | Literal[False] | None = Field(
        None,
        description="torch.compile of the step, by layers (seconds) or as a whole (minutes, fewest launches), or false; null = "
        "layers on CUDA, else false",
    )
    flash_attention: FlashAttention = Field(
        "torch",
        description="whose flash attention on CUDA: torch's own, or that of an installed flash-attn 3 (compute capability 9.x) or 4 (9.x "
        "and 10.x), which is tried before the run begins",
    )
    cuda_graphs: bool = Field(
        False,
        description="record a micro-batch as a CUDA graph, which the device repeats for all others without waiting for the host to launch kernels: for "
        "small models and micro-batches; one process, engine plain",
    )
    recompute: Literal["layers", False] = Field(
        False,
        description="layers = keep only what goes into each layer and compute the rest again on the way back: far less memory, about "
        "a third more work, the same numbers",
    )
    deterministic: bool = Field(
        False, description="the same bits every time on CUDA too, where the fastest kernels add in any order; slower"
    )
    engine: str = Field(
        "auto", description="auto, plain, zero1, zero2, zero3, zero3_offload, zero3_nvme or a DeepSpeed JSON file"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto = CUDA, else MPS, else the CPU")
    processes: PositiveInt | None = Field(None, description="refuse to start with another number of processes")
    seed: int = Field(0, ge=0, lt=2**63, description="of weights, order and masks")


class GuardConfig(_Section):
    patience: PositiveInt = Field(
        10,
        description="steps left out in a row, because the gradient was not finite or jumped, that stop the run (exit code 6)",
    )
    stall: PositiveFloat | None = Field(
        1800,
        description="seconds without progress in a step after which a process is ended, and it is said who is behind (exit code 7); null = never; what processes send each other is waited for an hour at most",
    )
    replicas: PositiveInt | None = Field(
        1000,
        description="optimizer steps between comparisons of the ranks' weights, bit by bit, which also precede each checkpoint (exit code 6 "
        "where they differ); null = never",
    )
    spike: PositiveFloat | None = Field(
        None,
        description="leave out steps whose gradient norm is more than so many standard deviations above the mean of the last 128 of the "
        "same stage, and none before there are as many; not with DeepSpeed",
    )


class CheckpointConfig(_Section):
    every: PositiveInt = Field(500, description="optimizer steps between checkpoints")
    asynchronous: bool = Field(
        False, description="write in the background while training goes on, from a copy in host memory"
    )
    keep: PositiveInt = Field(3, description="newest checkpoints that stay")
    keep_best: int = Field(
        1, ge=0, description="checkpoints that stay for their held-out loss, of those evaluated at their step"
    )
    keep_every: PositiveInt | None = Field(None, description="checkpoints of multiples of so many steps stay")
    mirror: str | None = Field(
        None,
        description="URL (s3://, gs://, ...) or path where the newest `keep` checkpoints are copied, and looked for where run.dir has none as new",
    )


class EvaluationConfig(_Section):
    every: PositiveInt = Field(250, description="optimizer steps between evaluations")
    windows: PositiveInt = Field(256, description="windows of the valid split that are evaluated during training")


class LogConfig(_Section):
    every: PositiveInt = Field(10, description="optimizer steps between lines of metrics.jsonl")
    wandb: Literal["off", "online", "offline"] = Field("off", description="mirror metrics.jsonl to Weights & Biases")
    wandb_project: str = Field("dnascale", description="project there")
    tensorboard: bool = Field(False, description="mirror metrics.jsonl to RUN/tensorboard")


class RunConfig(_Section):
    dir: str = Field(description="folder of this run; runs/CONFIG if it is not said")
    allow_change: bool = Field(False, description="accept a configuration that differs from the one the run began with")

    @field_validator("dir")
    @classmethod
    def _is_here(cls, value: str) -> str:
        from dnascale.data.remote import is_remote

        if is_remote(value):
            raise ValueError(
                f"run.dir={value} is a URL, and a run is written in a folder of this machine: name one, and let "
                "checkpoint.mirror=URL keep copies of its checkpoints"
            )
        return value


class Config(_Section):
    """One run, whole."""

    data: DataConfig
    model: ModelConfig
    masking: MaskingConfig = MaskingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    guard: GuardConfig = GuardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    log: LogConfig = LogConfig()
    run: RunConfig

    def with_train(self, **values: Any) -> "Config":
        """The same with other values in `train`, which are not checked."""
        return self.model_copy(update={"train": self.train.model_copy(update=values)})

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        context, train = self.model.context, self.train
        if train.steps is None and train.minutes is None and train.epochs is None:
            raise ValueError(
                "say how long to train (or repeat what the run began with): train.steps, train.minutes or train.epochs"
            )
        for key in ("global_batch_tokens", "micro_batch_tokens"):
            if getattr(train, key) != "auto" and getattr(train, key) % context:
                raise ValueError(f"train.{key}={getattr(train, key)} must be a multiple of model.context={context}")
        for number, stage in enumerate(self.schedule.stages):
            if stage.context is not None and context % stage.context:
                raise ValueError(
                    f"schedule.stages[{number}].context={stage.context} must divide model.context={context}, the longest: "
                    "shorter windows are parts of whole ones"
                )
            if stage.global_batch_tokens is not None and stage.global_batch_tokens % context:
                raise ValueError(
                    f"schedule.stages[{number}].global_batch_tokens={stage.global_batch_tokens} must be a multiple of "
                    f"model.context={context}"
                )
        return self


#: Keys that say where and how a run computes, not what it computes: free to differ when a run is resumed.
HARDWARE_KEYS = (
    "data.path", "data.verify", "data.workers", "data.cache", "data.cache_limit_gb", "train.micro_batch_tokens", "train.precision", "train.compile", "train.flash_attention", "train.cuda_graphs", "train.recompute", "train.deterministic", "train.engine", "train.device", "train.processes", "optimizer.restart",
    "guard.patience", "guard.stall", "guard.replicas", "checkpoint", "evaluation", "log", "run",
)  # fmt: skip


def presets() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


#: Keys whose values are names of folders and the like, whatever they look like.
_PLACES = re.compile(
    r"run\.dir|data\.path|data\.cache|data\.sources\.[^.]+\.path|checkpoint\.mirror|model\.init_from|log\.wandb_project|train\.engine"
)


def load_config(source: str, overrides: list[str]) -> Config:
    """A preset's name or a YAML file, with `section.key=value` overrides. Raises UsageError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        tree = OmegaConf.load(_find(source))
        if not OmegaConf.is_dict(tree):
            raise UsageError(f"{source} is not a configuration: it must hold `section: {{key: value}}` pairs.")
        if (base := tree.pop("preset", None)) is not None:
            tree = OmegaConf.merge(OmegaConf.load(_preset(str(base))), tree)
        for override in overrides:
            key, equals, value = override.partition("=")
            if not equals or not key.strip():
                raise UsageError(f"'{override}' is not an override; write section.key=value, e.g. train.steps=1000.")
            # What YAML would take for a number or the beginning of a comment.
            text = _PLACES.fullmatch(key.strip()) is not None and value not in ("", "null")
            word = json.dumps(value) if (text or " #" in value) and value[:1] not in ("'", '"', "[", "{") else value
            try:
                tree = OmegaConf.merge(tree, OmegaConf.from_dotlist([f"{key}={word}"]))
            except YAMLError:
                raise UsageError(
                    f"'{override}' cannot be read: put a value with special characters in quotes, {key}='\"...\"'."
                ) from None
        values = OmegaConf.to_container(tree, resolve=True)
    except (OmegaConfBaseException, YAMLError, TypeError, ValueError, OSError) as error:
        raise UsageError(f"{source} cannot be read as configuration: {' '.join(str(error).split())}") from error
    assert isinstance(values, dict)
    values = _at_home(values)
    if isinstance(run := values.setdefault("run", {}), dict):
        run.setdefault("dir", f"runs/{Path(source).stem}")
    if isinstance(data := values.get("data"), dict):
        _expand_mixture(data)
    return parse(values, source)


def _at_home(value: Any) -> Any:
    """`~/...` in place of the home folder, which a shell leaves as it is behind `data.path=`."""
    if isinstance(value, dict):
        return {key: _at_home(one) for key, one in value.items()}
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _expand_mixture(data: dict[str, Any]) -> None:
    """A folder of several data sets, as `dnascale prepare RECIPE` makes it, stands for its sources and their weights."""
    from dnascale.data.mixture import load_mixture

    if data.get("sources") or not isinstance(data.get("path"), str):
        return
    if (mixture := load_mixture(Path(data["path"]))) is not None:
        del data["path"]
        if any("weight" in source for source in mixture["sources"].values()):
            del mixture["temperature"]
        data.update({**mixture, **data})


def parse(values: dict[str, Any], source: str) -> Config:
    """A plain tree to a Config. Raises UsageError that names the first wrong keys and the nearest right ones."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{source}: " + "; ".join(_explain(e) for e in error.errors()[:5])) from None


def to_yaml(config: Config) -> str:
    import yaml

    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def changes(before: Config, after: Config) -> list[str]:
    """Lines `key: old -> new` for what differs and matters to what the run computes."""

    def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in tree.items():
            name = f"{prefix}{key}"
            out |= leaves(value, f"{name}.") if isinstance(value, dict) else {name: value}
        return out

    def free(key: str) -> bool:
        # Where a source is may change; which there are, and their weights, may not.
        moved = re.fullmatch(r"data\.sources\..+\.path", key) is not None and key in old and key in new
        return moved or any(key == hardware or key.startswith(f"{hardware}.") for hardware in HARDWARE_KEYS)

    old, new = leaves(before.model_dump()), leaves(after.model_dump())
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key) and not free(key)
    ]


def _find(source: str) -> Path:
    if "=" in source and not Path(source).is_file():
        raise UsageError(
            f"'{source}' stands where the configuration belongs: first a preset ({', '.join(presets())}) or a YAML file, then "
            "section.key=value."
        )
    if source.endswith((".yaml", ".yml")) or "/" in source:
        path = Path(source)
        if not path.is_file():
            raise UsageError(f"{source}: no such configuration file.")
        return path
    return _preset(source)


def _preset(name: str) -> Path:
    path = PRESETS / f"{name}.yaml"
    if name not in presets():
        raise UsageError(f"unknown preset '{name}'{_nearest(name, presets())}; there are: {', '.join(presets())}.")
    return path


def _nearest(word: str, known: list[str], prefix: str = "") -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{prefix}{close[0]}'?)" if close else ""


def _elsewhere(word: str) -> str:
    return f" (did you mean '{found[0]}'?)" if (found := keys_named(word)) else ""


def keys_named(word: str) -> list[str]:
    """Keys of sections whose last part is `word`: train.steps for steps."""
    sections = {name: field.annotation for name, field in Config.model_fields.items()}
    return [f"{name}.{word}" for name, section in sections.items() if word in getattr(section, "model_fields", {})]


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        section: Any = Config
        for part in error["loc"][:-1]:
            section = section.model_fields[part].annotation if part in section.model_fields else section
            if not hasattr(section, "model_fields"):  # of several: data.sources by name, schedule.stages by number
                section = StageConfig if part == "stages" else SourceConfig
        prefix = key[: -len(str(error["loc"][-1]))]
        word = str(error["loc"][-1])
        return f"unknown key '{key}'{_nearest(word, list(section.model_fields), prefix) or _elsewhere(word)}"
    if error["type"] == "missing":
        hint = " (the data set folder or URL, e.g. data.path=DATA)" if key == "data" else ""
        return f"'{key}' is missing{hint}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        return f"'{key}: {error['input']}' is read as a number: put what was meant in quotes"
    return f"'{key}={error['input']}': {error['msg'][0].lower()}{error['msg'][1:]}"
