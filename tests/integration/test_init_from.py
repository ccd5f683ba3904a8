"""model.init_from: another run's or somebody else's weights to begin with."""

from pathlib import Path

import pytest
import torch
from jobs import dnascale, metrics, require_deepspeed, train, train_words
from tokenizers import Tokenizer, models
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from dnascale.data.shards import Dataset
from dnascale.train.checkpoint import require_newest

LENGTH = ("train.steps=1", "optimizer.learning_rate=1e-12", "optimizer.weight_decay=0")
EMBEDDING = "model.embeddings.tok_embeddings.weight"


@pytest.fixture(scope="module")
def trained(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train(run, human_cds, "train.steps=8", "model.initializer_range=0.06")
    return run


@pytest.mark.parametrize(
    ("processes", "engine"),
    [(1, "plain"), (2, "plain"), (2, "zero2"), pytest.param(2, "zero3", marks=pytest.mark.slow)],
)
def test_a_run_begins_with_the_weights_of_another_on_any_engine(
    human_cds: Dataset, tmp_path: Path, trained: Path, processes: int, engine: str
) -> None:
    if engine != "plain":
        require_deepspeed()
    run = tmp_path / "run"
    words = train_words(run, human_cds, *LENGTH, f"model.init_from={trained}", engine=engine)
    outcome = dnascale(*words, processes=processes)
    assert outcome.code == 0, outcome.output
    assert f"init     {trained}, step 8: 63,319 of 63,319 parameters, 23 of 23 tokens\n" in outcome.output
    found = require_newest(run).weights()
    for name, value in require_newest(trained).weights().items():
        assert torch.allclose(found[name], value, atol=1e-9), name
    assert require_newest(run).state.step == 1


def test_weights_that_were_trained_with_another_rotary_base_are_told(
    human_cds: Dataset, tmp_path: Path, trained: Path
) -> None:
    words = train_words(
        tmp_path / "run", human_cds, *LENGTH, f"model.init_from={trained}", "model.global_rope_theta=123"
    )
    outcome = dnascale(*words)
    assert outcome.code == 0, outcome.output
    assert "; they were trained with model.global_rope_theta=" in outcome.output
    assert ", which is now 123" in outcome.output
    assert "local_rope_theta" not in outcome.output


def test_a_run_that_goes_on_is_not_begun_again(human_cds: Dataset, tmp_path: Path, trained: Path) -> None:
    run = tmp_path / "run"
    train(run, human_cds, "train.steps=2", f"model.init_from={trained}")
    first = metrics(run)[0]["loss"]
    assert first < metrics(trained)[0]["loss"] - 0.1
    outcome = dnascale(
        *train_words(run, human_cds, "train.steps=3", f"model.init_from={trained}", "run.allow_change=true")
    )
    assert "resumed  from the checkpoint of step 2" in outcome.output
    assert "init  " not in outcome.output


def test_an_exported_folder_is_the_run_it_came_from(human_cds: Dataset, tmp_path: Path, trained: Path) -> None:
    assert dnascale("export", trained, tmp_path / "model").code == 0
    run = tmp_path / "run"
    outcome = dnascale(*train_words(run, human_cds, *LENGTH, f"model.init_from={tmp_path / 'model'}"))
    assert "63,319 of 63,319 parameters, 23 of 23 tokens" in outcome.output
    found = require_newest(run).weights()
    assert all(torch.allclose(found[n], v, atol=1e-9) for n, v in require_newest(trained).weights().items())


def test_tokens_go_by_their_letters_and_what_does_not_fit_stays_fresh(human_cds: Dataset, tmp_path: Path) -> None:
    """A model of other ids, one layer fewer and a head of its own size, as a stranger may publish it."""
    letters = ["[PAD]", "[MASK]", "T", "G", "C", "A", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = Tokenizer(models.WordLevel({token: n for n, token in enumerate(letters)}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=vocabulary, mask_token="[MASK]", pad_token="[PAD]").save_pretrained(
        tmp_path
    )
    torch.manual_seed(3)
    hf = ModernBertForMaskedLM(
        ModernBertConfig(
            vocab_size=9, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
            bos_token_id=7, eos_token_id=8, cls_token_id=7, sep_token_id=8, max_position_embeddings=64, initializer_range=0.3,
        )
    )  # fmt: skip
    hf.save_pretrained(tmp_path)
    run = tmp_path / "run"
    words = train_words(run, human_cds, *LENGTH, f"model.init_from={tmp_path}")
    outcome = dnascale(*words)
    assert outcome.code == 0, outcome.output
    assert "9 of 23 tokens; fresh: model.layers.1.attn_norm.weight (64,) (not there), " in outcome.output
    found = require_newest(run).weights()
    theirs = hf.state_dict()
    order = ["A", "T", "C", "G"]
    for row, letter in enumerate(order):
        assert torch.allclose(found[EMBEDDING][row], theirs[EMBEDDING][letters.index(letter)], atol=1e-9)
    assert found[EMBEDDING][4].std() < 0.1  # N: fresh
    assert torch.allclose(found["model.layers.0.mlp.Wi.weight"], theirs["model.layers.0.mlp.Wi.weight"], atol=1e-9)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.hidden_size=128", "is another model: 0 of"),
        ("model.init_from=/nowhere/at/all", "is neither a run folder (it has no config.yaml) nor a Hugging Face model"),
    ],
)
def test_another_model_or_none_is_refused(
    human_cds: Dataset, tmp_path: Path, trained: Path, override: str, sentence: str
) -> None:
    words = train_words(tmp_path / "run", human_cds, *LENGTH, f"model.init_from={trained}", override)
    outcome = dnascale(*words, HF_HUB_OFFLINE="1")
    assert outcome.code == 2
    assert sentence in outcome.error
