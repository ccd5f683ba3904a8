"""A trained masked language model with one token a base, wherever it comes from, as scoring and embedding see it.

Bases go in as character codes (`dnascale.vocab.CHARACTER`: A 0, T 1, C 2, G 3, then the other letters), and distributions
over A, C, G, T come out. The ids and special tokens of the model's own tokenizer stay in here.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dnascale.device import choose_device
from dnascale.errors import CheckpointError, UsageError, first_line
from dnascale.model import attention
from dnascale.model.attention import Attention
from dnascale.runs import Run, is_run
from dnascale.vocab import CHARACTER, PREDICTED_BASES, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

#: The order of the last axis of `log_p`.
BASES = "ACGT"
#: [18] or more: a character code to its place in `BASES`, -1 for what is none of them. U is read as T.
BASE_OF_CODE = np.array(
    [BASES.find("T" if letter == "U" else letter) for letter in CHARACTER.tokens[: CHARACTER.bases]]
)
_U = CHARACTER.tokens.index("U")
#: uint8 [18]: the code of the other strand's letter.
COMPLEMENT = CHARACTER.complement_table[: CHARACTER.bases].astype(np.uint8)
#: A position ids may go up to in models that say nothing of it.
_UNBOUNDED = 1_000_000
#: Names under which Hugging Face's masked language models keep what turns hidden states into logits.
_HEADS = ("cls", "lm_head", "predictions")


@dataclass
class LanguageModel:
    """`context`: bases that fit into one window. `digest`: tells this model, weights and letters, from any other."""

    name: str
    digest: str
    hf: "PreTrainedModel"
    ids: torch.Tensor  # int64 [18]: the model's id of each character code
    mask: int
    before: tuple[int, ...]  # special tokens that its tokenizer puts before a sequence
    after: tuple[int, ...]
    context: int
    device: torch.device
    autocast: torch.dtype | None = None
    separator: int | None = None  # what its tokenizer puts between sequences
    trained_on_both: bool | None = None  # strands; None: not known
    _attention: Attention | None = None
    _whole_logits: bool = False

    def __post_init__(self) -> None:
        self.hf.eval().to(self.device)
        self.ids = self.ids.to(self.device)
        self._columns = self.ids[torch.tensor([CHARACTER.tokens.index(base) for base in BASES], device=self.device)]

    def asks_both(self, asked: bool | None) -> bool:
        """Whether both strands are asked: as somebody wants it, or else (None) as the model was trained, or both where that is not known."""
        if asked is not None:
            return asked
        return self.trained_on_both is not False

    @property
    def layers(self) -> int:
        """How many layers it has; `hidden` takes 0 (embeddings) to this number."""
        return int(self.hf.config.num_hidden_layers)

    @property
    def size(self) -> int:
        """Width of a hidden state."""
        return int(self.hf.config.hidden_size)

    @torch.inference_mode()
    def log_p(self, codes: np.ndarray, positions: np.ndarray, hide: bool = True) -> np.ndarray:
        """ln p of A, C, G, T (adding up to 1 among them) at some positions of windows of one length.

        codes uint8 [B, S] and positions int64 [B, K] -> float32 [B, K, 4]. `hide`: these positions are shown as [MASK], all K of
        a window at once; otherwise the model sees the bases there.
        """
        ids, at = self._ids(codes), torch.from_numpy(positions).to(self.device)
        if hide:
            ids.scatter_(1, at, self.mask)
        at = at + len(self.before)
        with self._precision():
            logits = self._logits(self._with_ends(ids), at)
        return logits[..., self._columns].float().log_softmax(dim=-1).cpu().numpy()

    @torch.inference_mode()
    def hidden(self, codes: np.ndarray, layer: int = -1) -> torch.Tensor:
        """codes uint8 [B, S] -> hidden states of the bases alone, float32 [B, S, H] on the device.

        `layer` 0 is the embeddings, 1 what the first layer gives, and -1 the last one after its norm. Raises UsageError for a
        layer that is not there.
        """
        if not -1 <= layer <= self.layers:
            raise UsageError(
                f"{self.name} has {self.layers} layers: layer {layer} is none of 0 to {self.layers}, or -1."
            )
        ids = self._with_ends(self._ids(codes))
        with self._precision():
            if layer == -1:
                states = self._body(ids).last_hidden_state
            else:
                states = self._body(ids, output_hidden_states=True).hidden_states[layer]
        return states[:, len(self.before) : len(self.before) + codes.shape[1]].float()

    @torch.inference_mode()
    def token_log_p(self, tokens: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
        """ln p of A, T, C, G, as a data set of characters numbers them, and of all other tokens together: int64 [B, S] of the data
        set's tokens, masks included, -> [B, S, 5].

        Records are kept apart where this model's attention can; elsewhere the separator is all there is between them.
        """
        ids = self._of_tokens(vocabulary)[tokens]
        separator = int(ids.new_tensor(self._separator))
        options: dict[str, Any] = {}
        if self._attention is not None:
            apart = replace(self._attention, separator=separator)
            laid_out = apart.lay_out(ids, apart.room(len(ids), int((ids == separator).sum())))
            options = {"attention_mask": {"full_attention": None, "sliding_attention": None}, "layout": laid_out}
        else:
            ids = self._with_ends(ids)
        with self._precision():
            if options:
                logits = self._head(self.hf.base_model(input_ids=ids, **options).last_hidden_state)
            else:
                logits = self.hf(input_ids=ids).logits[:, len(self.before) : len(self.before) + tokens.shape[1]]
        bases = logits.float().log_softmax(dim=-1)[..., self.ids[:PREDICTED_BASES]]
        others = torch.log1p(-bases.exp().sum(dim=-1, keepdim=True).clamp(max=1 - 1e-7))
        return torch.cat([bases, others], dim=-1)

    @property
    def _separator(self) -> int:
        return self.separator if self.separator is not None else int(self.ids[CHARACTER.tokens.index("N")])

    def _of_tokens(self, vocabulary: Vocabulary) -> torch.Tensor:
        """int64 [V]: this model's id of each token of a data set."""
        table = torch.full((len(vocabulary),), self._separator, dtype=torch.int64, device=self.device)
        table[: len(self.ids)] = self.ids
        table[vocabulary.mask] = self.mask
        return table

    def _ids(self, codes: np.ndarray) -> torch.Tensor:
        return self.ids[torch.from_numpy(np.array(codes, order="C")).to(self.device).long()]

    def _with_ends(self, ids: torch.Tensor) -> torch.Tensor:
        if not (self.before or self.after):
            return ids
        ends = [
            torch.tensor(end, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)
            for end in (self.before, self.after)
        ]
        return torch.cat([ends[0], ids, ends[1]], dim=1)

    def _body(self, ids: torch.Tensor, **options: Any) -> Any:
        if self._attention is not None:
            layout = self._attention.lay_out(ids, 0)
            options |= {"attention_mask": {"full_attention": None, "sliding_attention": None}, "layout": layout}
        return self.hf.base_model(input_ids=ids, **options)

    def _logits(self, ids: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        """The head runs on the wanted positions alone: [B, K] -> [B, K, V]."""
        if self._whole_logits:
            logits = self.hf(input_ids=ids).logits
            return logits.gather(1, at[:, :, None].expand(-1, -1, logits.shape[-1]))
        states = self._body(ids).last_hidden_state
        return self._head(states.gather(1, at[:, :, None].expand(-1, -1, states.shape[-1])))

    def _head(self, states: torch.Tensor) -> torch.Tensor:
        if hasattr(self.hf, "head") and hasattr(self.hf, "decoder"):
            return self.hf.decoder(self.hf.head(states))
        return next(getattr(self.hf, name) for name in _HEADS if hasattr(self.hf, name))(states)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    @torch.inference_mode()
    def settle_head(self) -> "LanguageModel":
        """Takes the way over all logits where the parts of the model, put together here, do not give its own logits."""
        sample = self._with_ends(self._ids(np.arange(min(12, self.context), dtype=np.uint8)[None] % PREDICTED_BASES))
        everywhere = torch.arange(sample.shape[1], device=self.device)[None]
        whole = self.hf(input_ids=sample).logits
        try:
            parts = self._logits(sample, everywhere)
            self._whole_logits = not torch.allclose(parts, whole, atol=1e-4, rtol=1e-4)
        except (StopIteration, TypeError, AttributeError, RuntimeError):
            self._whole_logits = True
        return self


def load_model(
    path: str | Path, device: str = "auto", precision: str = "fp32", context: int | None = None
) -> LanguageModel:
    """A run folder (its newest checkpoint), one of its checkpoints, or a Hugging Face folder of a masked language model.

    `precision`: fp32 or bf16. `context`: bases a window, if less than the model takes. Raises UsageError when `path` is none
    of these or a base is not one token, CheckpointError for a damaged run.
    """
    path, chosen = Path(path), torch.device(choose_device(device))
    if precision not in ("fp32", "bf16"):
        raise UsageError(f"precision {precision!r} is neither fp32 nor bf16.")
    autocast = torch.bfloat16 if precision == "bf16" else None
    if chosen.type == "cuda":
        import os

        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if is_run(path):
        model = _of_run(path, chosen, autocast)
    elif (path / "config.json").is_file():
        model = _of_folder(path, chosen, autocast)
    else:
        raise UsageError(
            f"{path} is no model: name a run folder (it has a config.yaml), one of its checkpoints (MANIFEST.json), or a "
            "Hugging Face folder (config.json)."
        )
    if context is not None:
        if not 3 <= context <= model.context:
            raise UsageError(f"--context {context} is not between 3 and the {model.context} bases that {path} takes.")
        model.context = context
    return model.settle_head()


def _of_run(path: Path, device: torch.device, autocast: torch.dtype | None) -> LanguageModel:
    run = Run.open(path)
    vocabulary = run.vocabulary()
    if not vocabulary.one_base_a_token or vocabulary.views > 1:
        raise UsageError(
            f"{path} has tokens of several bases ({vocabulary.name}): this needs a model in which each base is one token. "
            "`dnascale eval` takes any."
        )
    hf = run.model()
    ids = torch.arange(vocabulary.bases)
    if not run.keeps_u():
        ids[_U] = CHARACTER.tokens.index("T")
    return LanguageModel(
        name=str(run.checkpoint.folder),
        digest=str(run.checkpoint.manifest["sha256"]),
        hf=hf,
        ids=ids,
        mask=vocabulary.mask,
        before=(),
        after=(),
        context=run.config.model.context,
        device=device,
        autocast=autocast,
        trained_on_both=run.config.masking.reverse_complement,
        _attention=_attention(hf, device, autocast),
    )


def _of_folder(path: Path, device: torch.device, autocast: torch.dtype | None) -> LanguageModel:
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        hf = AutoModelForMaskedLM.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UsageError(
            f"{path} cannot be loaded as a masked language model with its tokenizer: {first_line(error)}"
        ) from None
    ids, before, after = _letters_of(tokenizer, path, getattr(hf.config, "keeps_u", False))
    if tokenizer.mask_token_id is None:
        raise UsageError(f"the tokenizer of {path} has no mask token: the model is no masked language model.")
    known = hf.config
    longest = getattr(known, "max_position_embeddings", None) or _UNBOUNDED
    limits = [longest, tokenizer.model_max_length or _UNBOUNDED]
    if getattr(known, "position_embedding_type", None) == "absolute" and known.model_type in ("esm", "roberta"):
        limits.append(longest - known.pad_token_id - 1)  # their positions start behind the padding id
    if min(limits) >= _UNBOUNDED:
        raise UsageError(
            f"{path} does not say how long its windows may be: set max_position_embeddings in its config.json."
        )
    kernel = None
    if hf.config.model_type == "modernbert":
        attention.use(hf)
        kernel = _attention(hf, device, autocast)
    return LanguageModel(
        name=str(path),
        digest=_digest(path),
        hf=hf,
        ids=ids,
        mask=int(tokenizer.mask_token_id),
        before=before,
        after=after,
        context=min(limits) - len(before) - len(after),
        device=device,
        autocast=autocast,
        separator=tokenizer.sep_token_id,
        trained_on_both=getattr(hf.config, "reverse_complement", None),
        _attention=kernel,
    )


def _attention(hf: "PreTrainedModel", device: torch.device, autocast: torch.dtype | None) -> Attention:
    """One window is one sequence here: nothing is to be kept apart."""
    config = hf.config
    size = config.hidden_size // config.num_attention_heads
    dtype = autocast or torch.float32
    return Attention.choose(device, dtype, size, config.max_position_embeddings, None, config.local_attention // 2)


def _letters_of(tokenizer: Any, path: Path, keeps_u: bool) -> tuple[torch.Tensor, tuple[int, ...], tuple[int, ...]]:
    """Ids of the character codes, U as T unless `keeps_u`, and the special tokens before and after.

    Raises UsageError when a base is not one token.
    """

    def plain(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    probe = "ACGTTGCAAC"
    single = {base: plain(base) for base in BASES}
    if any(len(ids) != 1 for ids in single.values()) or plain(probe) != [single[base][0] for base in probe]:
        raise UsageError(
            f"the tokenizer of {path} makes {len(plain(probe))} tokens of the {len(probe)} bases {probe}: this needs a model in "
            "which each base is one token."
        )
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else tokenizer.mask_token_id
    ids = []
    for letter in CHARACTER.tokens[: CHARACTER.bases]:
        found = plain("T" if letter == "U" and not keeps_u else letter)
        ids.append(found[0] if len(found) == 1 else unknown)
    whole = tokenizer(probe)["input_ids"]
    start = whole.index(plain(probe)[0])
    if whole[start : start + len(probe)] != plain(probe):
        raise UsageError(f"the tokenizer of {path} puts special tokens between bases: such models are not supported.")
    return torch.tensor(ids), tuple(whole[:start]), tuple(whole[start + len(probe) :])


def _digest(path: Path) -> str:
    """SHA-256 of everything that decides what the model says."""
    digest = hashlib.sha256()
    files = [file for file in sorted(path.iterdir()) if file.suffix in (".json", ".safetensors", ".bin", ".txt")]
    if not files:
        raise CheckpointError(f"{path} has no files of a model.")
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
