"""Checkpoints for other programs, and of other programs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import their_deepspeed
import torch
from jobs import dnascale, execute, require_deepspeed, train, train_words
from safetensors.numpy import load_file
from tokenizers import Tokenizer, models
from transformers import ModernBertConfig, ModernBertForMaskedLM, PreTrainedTokenizerFast

from dnascale.data.shards import Dataset
from dnascale.runs import Run
from dnascale.train.checkpoint import Checkpoint, committed, require_newest

LETTERS = ["[PAD]", "[MASK]", "T", "G", "C", "A", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(scope="module")
def trained(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("exchange") / "run"
    train(run, human_cds, "train.steps=4", "checkpoint.every=2", "evaluation.every=2")
    return run


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configuration and the tokenizer of their model, without weights."""
    folder = tmp_path_factory.mktemp("described")
    ModernBertConfig(**their_deepspeed.CONFIG, architectures=["ModernBertForMaskedLM"]).save_pretrained(folder)
    letters = Tokenizer(models.WordLevel({letter: row for row, letter in enumerate(LETTERS)}, "[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=letters, mask_token="[MASK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


def test_a_converted_checkpoint_has_the_weights_and_moments_of_all_ranks(human_cds: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = dnascale(*train_words(run, human_cds, "train.steps=2"), processes=2)
    assert outcome.code == 0, outcome.output
    outcome = dnascale("ckpt", "convert", run, tmp_path / "out")
    assert outcome.code == 0, outcome.output
    assert "step 2 in weight.safetensors, exp_avg.safetensors, exp_avg_sq.safetensors" in outcome.output
    saved = require_newest(run)
    for kind in ("weight", "exp_avg", "exp_avg_sq"):
        found = load_file(tmp_path / "out" / f"{kind}.safetensors")
        assert set(found) == {p["name"] for p in saved.manifest["parameters"]}
        for name, value in found.items():
            assert np.array_equal(value.ravel(), saved.read(kind, name, 0, value.size).numpy()), (kind, name)
    assert {name: value.shape for name, value in load_file(tmp_path / "out" / "weight.safetensors").items()} == {
        name: tuple(value.shape) for name, value in saved.weights().items()
    }


def test_a_checkpoint_that_is_not_the_newest_is_evaluated_exported_and_begun_with(
    human_cds: Dataset, tmp_path: Path, trained: Path
) -> None:
    first, last = committed(trained / "checkpoints")
    outcome = dnascale("eval", first)
    assert "this model (step 2)" in outcome.output, outcome.output
    assert (trained / "step-00000002-evaluation-valid.json").is_file()
    assert not (trained / "evaluation-valid.json").exists()
    outcome = dnascale("export", first, tmp_path / "model")
    assert "of step 2, read back" in outcome.output, outcome.output
    assert "Held-out loss" in (tmp_path / "model" / "README.md").read_text()
    exported = ModernBertForMaskedLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(exported[name], value) for name, value in Run.open(first).checkpoint.weights().items())
    assert not all(torch.equal(exported[name], value) for name, value in Run.open(last).checkpoint.weights().items())
    outcome = dnascale(*train_words(tmp_path / "run", human_cds, "train.steps=1", f"model.init_from={first}"))
    assert f"init     {trained}, step 2: " in outcome.output, outcome.output


def test_a_checkpoint_that_is_not_there_is_answered_with_those_that_are(trained: Path) -> None:
    outcome = dnascale("eval", trained / "checkpoints" / "step-00000003")
    assert outcome.code == 2
    assert outcome.error.endswith(f"is not there: the checkpoints of {trained} are step-00000002, step-00000004.")


def test_what_is_written_for_others_may_be_read_by_others(trained: Path, tmp_path: Path) -> None:
    assert dnascale("export", trained, tmp_path / "model").code == 0
    assert dnascale("ckpt", "convert", trained, tmp_path / "out").code == 0
    beside = tmp_path / "beside"
    beside.touch()
    files = [path for folder in ("model", "out") for path in (tmp_path / folder).iterdir()]
    assert {path.stat().st_mode for path in files} == {beside.stat().st_mode}


def test_the_best_of_the_checkpoints_is_marked(trained: Path) -> None:
    rows = [line for line in dnascale("ckpt", "ls", trained).output.splitlines() if line.startswith("step-")]
    losses = [Checkpoint(path).state.valid_loss for path in committed(trained / "checkpoints")]
    assert [row.split()[-1] == "best" for row in rows] == [loss == min(losses) for loss in losses]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_checkpoint_of_deepspeed_becomes_a_model_to_begin_with(
    human_cds: Dataset, tmp_path: Path, described: Path, stage: int
) -> None:
    require_deepspeed()
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    outcome = execute(their_deepspeed.run, theirs, stage, processes=2)
    assert outcome.code == 0, outcome.output
    expected = load_file(theirs / "expected.safetensors")
    (theirs / "expected.safetensors").unlink()
    outcome = dnascale("ckpt", "import", theirs, tmp_path / "model", "--model", described, "--trust-pickle")
    assert outcome.code == 0, outcome.output
    found = {
        n: v.detach().numpy() for n, v in ModernBertForMaskedLM.from_pretrained(tmp_path / "model").named_parameters()
    }
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert np.array_equal(found[name], value), name
    words = train_words(tmp_path / "run", human_cds, "train.steps=1", f"model.init_from={tmp_path / 'model'}")
    outcome = dnascale(*words)
    assert "9 of 23 tokens" in outcome.output, outcome.output


def test_pickled_weights_are_read_only_when_they_are_trusted(tmp_path: Path, described: Path) -> None:
    theirs = shutil.copytree(described, tmp_path / "theirs")
    torch.manual_seed(1)
    hf = ModernBertForMaskedLM(ModernBertConfig(**their_deepspeed.CONFIG))
    torch.save(
        {f"module._orig_mod.{name}": value for name, value in hf.state_dict().items()}, theirs / "pytorch_model.bin"
    )
    outcome = dnascale("ckpt", "import", theirs, tmp_path / "model")
    assert outcome.code == 2
    assert "are pickles, which run whatever code" in outcome.error
    assert not (tmp_path / "model").exists()
    assert dnascale("ckpt", "import", theirs, tmp_path / "model", "--trust-pickle").code == 0
    found = ModernBertForMaskedLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], value) for name, value in hf.state_dict().items())
    outcome = dnascale("ckpt", "import", tmp_path / "model", tmp_path / "again")
    assert outcome.code == 2
    assert "has safetensors: model.init_from=" in outcome.error


@pytest.mark.parametrize(
    ("weights", "code", "sentence"),
    [
        (None, 2, "has neither a DeepSpeed checkpoint (*_model_states.pt) nor a pytorch_model.bin"),
        ({"encoder.weight": torch.zeros(3)}, 4, "are of no ModernBERT: their names begin with encoder.weight"),
        (
            {"model.embeddings.tok_embeddings.weight": torch.zeros(9, 64)},
            4,
            "not there: decoder.bias, head.dense.weight",
        ),
        ({"model.embeddings.tok_embeddings.weight": torch.zeros(9, 32)}, 4, "size mismatch for model.embeddings"),
    ],
)
def test_what_is_no_such_model_is_refused_in_a_sentence(
    tmp_path: Path, described: Path, weights: dict[str, torch.Tensor] | None, code: int, sentence: str
) -> None:
    theirs = shutil.copytree(described, tmp_path / "theirs")
    if weights is not None:
        torch.save(weights, theirs / "pytorch_model.bin")
    outcome = dnascale("ckpt", "import", theirs, tmp_path / "model", "--trust-pickle")
    assert (outcome.code, sentence in outcome.error) == (code, True), outcome.output
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", [b"", b"hello\n"], ids=["empty", "text"])
def test_pickles_that_cannot_be_read_are_named(tmp_path: Path, described: Path, content: bytes) -> None:
    theirs = shutil.copytree(described, tmp_path / "theirs")
    (theirs / "pytorch_model.bin").write_bytes(content)
    outcome = dnascale("ckpt", "import", theirs, tmp_path / "model", "--trust-pickle")
    assert outcome.code == 4
    assert f"the weights in {theirs} cannot be read (" in outcome.error
    assert not (tmp_path / "model").exists()


def test_of_two_checkpoints_of_deepspeed_the_newest_is_taken_or_one_is_to_be_named(
    tmp_path: Path, described: Path
) -> None:
    theirs = shutil.copytree(described, tmp_path / "theirs")
    for step in (10, 20):
        torch.manual_seed(step)
        hf = ModernBertForMaskedLM(ModernBertConfig(**their_deepspeed.CONFIG))
        (theirs / f"global_step{step}").mkdir()
        torch.save({"module": hf.state_dict()}, theirs / f"global_step{step}" / "mp_rank_00_model_states.pt")
    outcome = dnascale("ckpt", "import", theirs, tmp_path / "model", "--trust-pickle")
    assert outcome.code == 2
    assert "has 2 DeepSpeed checkpoints and no file `latest`: name one, e.g." in outcome.error
    (theirs / "latest").write_text("global_step20\n")
    assert dnascale("ckpt", "import", theirs, tmp_path / "model", "--trust-pickle").code == 0
    found = ModernBertForMaskedLM.from_pretrained(tmp_path / "model").state_dict()
    assert torch.equal(found["head.dense.weight"], hf.state_dict()["head.dense.weight"])


def test_of_two_folders_with_a_latest_each_one_is_to_be_named(tmp_path: Path, described: Path) -> None:
    theirs = shutil.copytree(described, tmp_path / "theirs")
    for step in (10, 20):
        folder = theirs / f"checkpoint-{step}" / f"global_step{step}"
        folder.mkdir(parents=True)
        torch.save({"module": {}}, folder / "mp_rank_00_model_states.pt")
        (folder.parent / "latest").write_text(folder.name)
    outcome = dnascale("ckpt", "import", theirs, tmp_path / "model", "--trust-pickle")
    assert outcome.code == 2
    assert "has 2 DeepSpeed checkpoints and several files `latest`: name one, e.g." in outcome.error


def test_weights_in_fp32_stay_so_where_the_configuration_says_bf16(tmp_path: Path, described: Path) -> None:
    theirs = shutil.copytree(described, tmp_path / "theirs")
    said = json.loads((theirs / "config.json").read_text()) | {"dtype": "bfloat16"}
    (theirs / "config.json").write_text(json.dumps(said))
    hf = ModernBertForMaskedLM(ModernBertConfig(**their_deepspeed.CONFIG))
    torch.save(hf.state_dict(), theirs / "pytorch_model.bin")
    assert dnascale("ckpt", "import", theirs, tmp_path / "model", "--trust-pickle").code == 0
    found = load_file(tmp_path / "model" / "model.safetensors")
    assert found["head.dense.weight"].dtype == np.float32
    assert np.array_equal(found["head.dense.weight"], hf.state_dict()["head.dense.weight"].numpy())
