"""What a trained run is used for: evaluation beside baselines, and an exported model that needs no dnascale."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import dnascale, train

from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.shards import Dataset
from dnascale.runs import Run


@pytest.fixture(scope="module")
def human_cds(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A smaller held-out share than the other tests use: every base of it is scored."""
    folder = tmp_path_factory.mktemp("after-data") / "human-cds"
    return prepare(["builtin:human-cds"], folder, PrepareOptions(valid=0.01))


@pytest.fixture(scope="module")
def run(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("after") / "run"
    train(folder, human_cds, "train.steps=50")
    return folder


def test_evaluation_scores_every_held_out_base_beside_the_baselines(run: Path, human_cds: Dataset) -> None:
    outcome = dnascale("eval", str(run), "--json")
    assert outcome.code == 0, outcome.output
    result = json.loads(outcome.output)
    valid = human_cds.splits["valid"]
    assert result["model"]["bases"] == sum(valid.composition[base] for base in "ACGT")
    assert {b["bases"] for b in result["baselines"]} == {result["model"]["bases"]}
    by_name = {b["name"]: b["nats_per_base"] for b in result["baselines"]}
    assert by_name["uniform (ln 4)"] == pytest.approx(np.log(4))
    assert by_name["context 3+3 + codon phase"] < by_name["context 3+3"] < by_name["Markov order 5"] < np.log(4)
    assert 1.2 < result["model"]["nats_per_base"] < 1.45
    assert json.loads((run / "evaluation-valid.json").read_text()) == result


def test_evaluation_is_taken_apart_and_drawn(run: Path, human_cds: Dataset) -> None:
    result = json.loads((run / "evaluation-valid.json").read_text())
    detail, model = result["detail"], result["model"]
    assert detail["unit"] == "group"
    assert detail["units"] > 10
    assert detail["loss"]["low"] < model["nats_per_base"] < detail["loss"]["high"]
    assert detail["loss"]["value"] == pytest.approx(model["nats_per_base"], abs=1e-6)
    rival = next(b["nats_per_base"] for b in result["baselines"] if b["name"] == detail["ahead_of"])
    assert rival == min(b["nats_per_base"] for b in result["baselines"])
    assert detail["ahead"]["value"] == pytest.approx(rival - model["nats_per_base"], abs=1e-5)
    for parts in detail["parts"].values():
        assert sum(part["bases"] for part in parts) == model["bases"]
    assert {p["name"]: pytest.approx(p["accuracy"]) for p in detail["parts"]["base"]} == model["accuracy_by_base"]
    assert (run / "evaluation-valid.png").read_bytes().startswith(b"\x89PNG")
    assert "nats per base, behind context 4+4 + codon phase by 0." in dnascale("eval", str(run)).output


def test_u_is_t_to_a_run_and_its_export_unless_they_learned_rna(run: Path, tmp_path: Path) -> None:
    from dnascale import load_model

    rna = tmp_path / "rna"
    shutil.copytree(run, rna)
    about = json.loads((rna / "environment.json").read_text())
    assert about["alphabets"] == ["iupac"]
    (rna / "environment.json").write_text(json.dumps(about | {"alphabets": ["rna"]}))
    for trained, keeps in ((run, False), (rna, True)):
        exported = tmp_path / f"exported-{keeps}"
        assert dnascale("export", trained, exported).code == 0
        for model in (load_model(trained, "cpu"), load_model(exported, "cpu")):
            ids = model.ids.tolist()
            assert (ids[5] == ids[1]) is not keeps  # of U and of T


def test_scores_say_which_step_of_a_run_gave_them(run: Path, tmp_path: Path) -> None:
    sequence = "ACGTTGCAAGGCTTACCGATAGGTCATTCGCG" * 4
    (tmp_path / "genome.fa").write_text(f">c\n{sequence}\n")
    (tmp_path / "in.vcf").write_text(
        f"##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\nc\t11\t.\t{sequence[10]}\tA\t.\t.\t.\n"
    )
    out, newest = tmp_path / "out.vcf", max((run / "checkpoints").glob("step-*"))
    assert dnascale("score", run, tmp_path / "in.vcf", "--reference", tmp_path / "genome.fa", "--out", out).code == 0
    assert f"model={newest} " in out.read_text()


def test_weights_that_are_not_finite_are_told_and_nothing_is_written(
    run: Path, tmp_path: Path, human_cds: Dataset
) -> None:
    from transformers import AutoModelForMaskedLM

    model = tmp_path / "model"
    assert dnascale("export", run, model).code == 0
    hf = AutoModelForMaskedLM.from_pretrained(model)
    with torch.no_grad():
        hf.head.norm.weight.fill_(float("nan"))
    hf.save_pretrained(model)
    outcome = dnascale("eval", model, "--data", human_cds.folder, "--out", tmp_path / "out.json")
    assert (outcome.code, "a loss that is not finite" in outcome.error) == (6, True), outcome.output
    assert not (tmp_path / "out.json").exists()


def test_an_exported_folder_evaluates_as_its_run(run: Path, human_cds: Dataset, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert dnascale("export", run, model).code == 0
    out = tmp_path / "found" / "evaluation.json"
    outcome = dnascale("eval", model, "--data", human_cds.folder, "--out", out, "--json")
    assert outcome.code == 0, outcome.output
    of_run = json.loads(dnascale("eval", run, "--json").output)
    of_folder = json.loads(outcome.output)
    assert json.loads(out.read_text()) == of_folder
    assert out.with_suffix(".png").exists()
    assert of_folder["step"] is None
    # bf16 in the run, where this machine is faster with it.
    assert of_folder["model"]["nats_per_base"] == pytest.approx(of_run["model"]["nats_per_base"], abs=2e-3)
    assert of_folder["model"]["bases"] == of_run["model"]["bases"]
    assert of_folder["baselines"] == of_run["baselines"]


def test_runs_and_exported_models_know_the_strands_they_were_trained_on(
    run: Path, human_cds: Dataset, tmp_path: Path
) -> None:
    from dnascale.evaluate.language_model import load_model

    both = tmp_path / "both"
    train(both, human_cds, "train.steps=2", "masking.reverse_complement=true")
    for one, expected in ((run, False), (both, True)):
        assert load_model(one, "cpu").trained_on_both is expected
        assert dnascale("export", one, tmp_path / f"{expected}").code == 0
        assert load_model(tmp_path / f"{expected}", "cpu").trained_on_both is expected


def test_what_an_evaluation_of_a_folder_lacks_is_a_sentence(run: Path, human_cds: Dataset, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert dnascale("export", run, model).code == 0
    assert "say what to evaluate it on, --data FOLDER" in dnascale("eval", model).error
    assert "belongs to Hugging Face folders" in dnascale("eval", run, "--context", "32").error
    long = dnascale("eval", model, "--data", human_cds.folder, "--context", "100000")
    assert "is not between 3 and the 64 bases" in long.error
    assert (
        "holds out no split 'nothing'"
        in dnascale("eval", model, "--data", human_cds.folder, "--split", "nothing").error
    )


def test_an_evaluation_goes_where_it_is_to_or_is_refused_before_it_scores(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "it.json"
    outcome = dnascale("eval", run, "--out", out, "--json")
    assert outcome.code == 0, outcome.output
    assert json.loads(out.read_text()) == json.loads(outcome.output)
    assert {path.name for path in out.parent.iterdir()} == {"it.json", "it.png"}
    assert "let the name end in .json" in dnascale("eval", run, "--out", tmp_path / "it").error
    refused = dnascale("eval", run, "--out", out / "in-a-file.json")
    assert refused.code == 2
    assert f"{out} cannot be written (" in refused.error
    assert "evaluating" not in refused.error


def test_the_card_has_an_evaluation_once_and_none_that_cannot_be_read(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (newest,) = sorted((copy / "checkpoints").glob("step-*"))[-1:]
    for path in (copy, newest):
        assert dnascale("eval", path).code == 0
    (copy / "my-evaluation-notes.json").write_text("{not json")
    (copy / "evaluation-mine.json").write_text('{"accuracy": 0.9}')
    (copy / "environment.json").write_text("")
    assert dnascale("export", copy, tmp_path / "model").code == 0
    assert (tmp_path / "model" / "README.md").read_text().count("## Held-out loss (valid split)") == 1


def test_onnx_gives_the_logits_of_torch(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = tmp_path / "model"
    outcome = dnascale("export", run, model, "--onnx")
    assert outcome.code == 0, outcome.output
    assert "whose logits ONNX Runtime gives too" in outcome.output
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    inputs = tokenizer(["ACG[MASK]ACGTTGCA", "GG[MASK]"], padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = AutoModelForMaskedLM.from_pretrained(model).eval()(**inputs).logits
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    given = {name: inputs[name].numpy() for name in ("input_ids", "attention_mask")}
    (found,) = session.run(None, given)
    there = inputs["attention_mask"].bool()
    assert np.allclose(found[there.numpy()], wanted[there].numpy(), atol=1e-4)


LOAD_WITHOUT_DNASCALE = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "dnascale":
            raise ImportError("dnascale is not installed here")
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1]).eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(**tokenizer(sys.argv[2], return_tensors="pt")).logits
fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)
print(json.dumps({"logits": logits[0].tolist(), "top": fill("ACG[MASK]ACG")[0]["token_str"], "dtype": str(model.dtype)}))
"""


def test_the_exported_folder_gives_the_training_models_logits_without_dnascale(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    outcome = dnascale("export", str(run), str(out))
    assert outcome.code == 0, outcome.output
    sequence = "atgGCCTTNNACGTacgtRYK[MASK]ACGTTGCA" * 2
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_DNASCALE, str(out), sequence], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    opened = Run.open(run)
    ids = torch.tensor([opened.corpus().vocabulary.encode(sequence)])
    with torch.no_grad():
        expected = opened.model()(input_ids=ids).logits[0]
    assert loaded["dtype"] == "torch.float32"
    assert loaded["top"] in {"A", "C", "G", "T"}
    # Another process may use another number of threads, so sums may be taken in another order.
    assert torch.allclose(torch.tensor(loaded["logits"]), expected, atol=1e-5)


def test_the_export_has_no_setting_of_this_machine_and_only_ids_of_its_vocabulary(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert dnascale("export", str(run), str(out)).code == 0
    config = json.loads((out / "config.json").read_text())
    assert not any("attn_implementation" in key or key == "_name_or_path" for key in config)
    special = {key: value for key, value in config.items() if key.endswith("_token_id")}
    assert special
    assert all(0 <= value < config["vocab_size"] for value in special.values())
    assert {path.name for path in out.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_large_export_is_in_several_files_with_a_card_of_its_run(
    run: Path, human_cds: Dataset, tmp_path: Path
) -> None:
    import yaml
    from transformers import AutoModelForMaskedLM

    out = tmp_path / "model"
    outcome = dnascale("export", str(run), str(out), "--shard-gb", "0.0001", "--license", "cc-by-4.0")
    assert outcome.code == 0, outcome.output
    assert len(list(out.glob("model-*.safetensors"))) > 1
    again, model = AutoModelForMaskedLM.from_pretrained(out).state_dict(), Run.open(run).model().state_dict()
    assert all(torch.equal(again[name], weights) for name, weights in model.items())
    _, header, card = (out / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(header)["license"] == "cc-by-4.0"
    assert f"| {human_cds.splits['train'].records:,} | {human_cds.splits['train'].bases:,} |" in card
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    loss = [row for row in last if row["kind"] == "train"][-1]
    assert f"training loss, step {loss['step']:,} | {loss['nats_per_base']:.4f} nats per base" in card
    assert human_cds.fingerprint in card


def test_an_export_over_an_existing_folder_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    outcome = dnascale("export", str(run), str(tmp_path))
    assert outcome.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]


def test_wandb_offline_keeps_one_run_over_a_resume(human_cds: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run = tmp_path / "run"
    train(run, human_cds, "train.steps=2", "checkpoint.every=2", "log.wandb=offline")
    first = (run / "wandb-id").read_text()
    train(run, human_cds, "train.steps=4", "run.allow_change=true", "log.wandb=offline")
    assert (run / "wandb-id").read_text() == first
    assert len(list((run / "wandb").glob("offline-run-*"))) == 2
