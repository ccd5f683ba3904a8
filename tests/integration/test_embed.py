"""`dnascale embed`: what plain transformers gives, whatever the batch, in files that others read."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dnascale.cli import main
from dnascale.config import ModelConfig
from dnascale.errors import DataError, UsageError
from dnascale.evaluate.embed import EmbedOptions, embed, pieces
from dnascale.evaluate.language_model import LanguageModel, load_model
from dnascale.model.modernbert import build
from dnascale.vocab import CHARACTER

CONTEXT = 32
RNG = np.random.default_rng(4)
SEQUENCES = {
    f"s{number}": bytes(RNG.choice(list(b"ACGT"), size).astype(np.uint8))
    for number, size in enumerate((20, 32, 9, 75, 33, 20, 1))
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    torch.set_num_threads(1)
    build(
        ModelConfig(hidden_size=32, layers=2, heads=2, intermediate_size=32, context=CONTEXT), CHARACTER, seed=1
    ).save_pretrained(out)
    CHARACTER.tokenizer(CONTEXT).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_model(folder, "cpu")


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fa"
    path.write_text("".join(f">{name} x\n{bases.decode()}\n" for name, bases in SEQUENCES.items()))
    return path


def plain(folder: Path, text: str, layer: int) -> np.ndarray:
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    with torch.no_grad():
        found = AutoModel.from_pretrained(folder).eval()(**tokens, output_hidden_states=True)
    return (found.last_hidden_state if layer == -1 else found.hidden_states[layer])[0].numpy()


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(arg) for arg in args])
    said = capsys.readouterr()
    return int(stopped.value.code or 0), said.out + said.err


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_the_mean_of_a_sequence_is_that_of_plain_transformers(folder: Path, model: LanguageModel, layer: int) -> None:
    short = {name: bases for name, bases in SEQUENCES.items() if len(bases) <= CONTEXT}
    found = list(embed(model, short.items(), EmbedOptions(layer=layer, both_strands=False, batch_tokens=64)))
    assert [one.name for one in found] == list(short)
    for one in found:
        expected = plain(folder, short[one.name].decode(), layer).mean(axis=0)
        np.testing.assert_allclose(one.values, expected, atol=1e-5)


def test_a_sequence_and_its_other_strand_have_one_embedding(model: LanguageModel) -> None:
    other = bytes.maketrans(b"ACGT", b"TGCA")
    turned = [(name, bases.translate(other)[::-1]) for name, bases in SEQUENCES.items() if len(bases) <= CONTEXT]
    there = [(name, SEQUENCES[name]) for name, _ in turned]
    for one, same in zip(embed(model, there), embed(model, turned), strict=True):
        np.testing.assert_allclose(one.values, same.values, atol=1e-6)


def test_windows_over_a_long_sequence_keep_each_base_once_and_far_from_the_ends() -> None:
    for length in range(1, 200):
        found = pieces(0, length, CONTEXT)
        assert [base for piece in found for base in range(piece.first, piece.last)] == list(range(length))
        for piece in found:
            assert 0 <= piece.start <= piece.first < piece.last <= piece.end <= length
            assert piece.end - piece.start == min(length, CONTEXT)
            assert piece.start == 0 or piece.first - piece.start >= CONTEXT // 4


def test_bases_and_windows_add_up_to_the_sequence(model: LanguageModel) -> None:
    name, bases = "s3", SEQUENCES["s3"]
    whole = next(embed(model, [(name, bases)])).values
    by_base = np.stack([one.values for one in embed(model, [(name, bases)], EmbedOptions(per="base"))])
    windows = list(embed(model, [(name, bases)], EmbedOptions(per="window", window=30)))
    assert [(one.start, one.end) for one in windows] == [(0, 30), (30, 60), (60, 75)]
    np.testing.assert_allclose(by_base.mean(axis=0), whole, atol=1e-6)
    np.testing.assert_allclose(np.average([w.values for w in windows], axis=0, weights=[30, 30, 15]), whole, atol=1e-6)


def test_letters_that_are_no_base_are_not_in_the_mean(model: LanguageModel) -> None:
    bases = b"ACGTNNNNACGT"
    by_base = np.stack([one.values for one in embed(model, [("x", bases)], EmbedOptions(per="base"))])
    known = [i for i, base in enumerate(bases) if base in b"ACGT"]
    np.testing.assert_allclose(next(embed(model, [("x", bases)])).values, by_base[known].mean(axis=0), atol=1e-6)
    assert np.isnan(next(embed(model, [("x", b"NNN")])).values).all()


def test_parquet_npy_and_zarr_hold_the_same_rows(
    folder: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zarr = pytest.importorskip("zarr")
    from pyarrow import parquet

    for out in ("a.parquet", "a.npy", "a.zarr"):
        code, said = run(capsys, "embed", folder, fasta, "--out", tmp_path / out, "--device", "cpu")
        assert code == 0, said
    table = parquet.read_table(tmp_path / "a.parquet")
    values = np.load(tmp_path / "a.npy")
    assert table.column("name").to_pylist() == list(SEQUENCES)
    assert table.column("end").to_pylist() == [len(bases) for bases in SEQUENCES.values()]
    np.testing.assert_array_equal(np.stack(table.column("embedding").to_numpy()), values)
    assert (tmp_path / "a.tsv").read_text().splitlines()[1] == "s0\t0\t20"
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    np.testing.assert_array_equal(group["embedding"][:], values)
    for field in ("name", "start", "end"):
        assert list(group[field][:]) == table.column(field).to_pylist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "a.parquet", "a.tsv", "a.zarr", "in.fa"]


def test_what_cannot_be_is_one_sentence_and_leaves_nothing(
    folder: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b.parquet"
    for options, words in (
        (["--layer", "7"], "has 2 layers"),
        (["--window", "9"], "--per window"),
    ):
        code, said = run(capsys, "embed", folder, fasta, "--out", out, "--device", "cpu", *options)
        assert (code, words in said) == (UsageError.exit_code, True), said
    code, said = run(capsys, "embed", folder, fasta, "--out", tmp_path / "b.txt", "--device", "cpu")
    assert (code, "neither .parquet, .npy nor .zarr" in said) == (UsageError.exit_code, True), said
    bad = tmp_path / "bad.fa"
    bad.write_text(">a\nACGT\n>b\nAC!T\n")
    code, said = run(capsys, "embed", folder, bad, "--out", out, "--device", "cpu")
    assert code == 3
    assert "bad.fa" in said
    table = tmp_path / "named.csv"
    for name in ("a\nb", "a\tb", "a\x85b"):
        table.write_text(f'name,sequence\ns0,ACGT\n"{name}",ACGT\n')
        code, said = run(capsys, "embed", folder, table, "--out", out, "--device", "cpu")
        assert (code, f"named.csv has a sequence named {name!r}" in said) == (3, True), said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.fa", "in.fa", "named.csv"]


def test_a_command_that_was_killed_goes_on_where_it_was(
    folder: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnascale.evaluate import embed as embedding
    from dnascale.evaluate import embed_files

    monkeypatch.setattr(embedding, "_TOGETHER", 40)  # four parts
    words = ("embed", folder, fasta, "--device", "cpu", "--out")
    assert run(capsys, *words, tmp_path / "whole.npy")[0] == 0
    done: list[int] = []
    real = embed_files.embed

    def counted(*arguments: object) -> object:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(embed_files, "embed", counted)
    assert run(capsys, *words, tmp_path / "a.npy")[0] == 130
    assert not (tmp_path / "a.npy").exists()
    (parts,) = tmp_path.glob(".a.npy.parts-*")
    assert len(list(parts.glob("*.npy"))) == 2
    # Another layer is other work.
    done.clear()
    assert run(capsys, *words, tmp_path / "a.npy", "--layer", "1")[0] == 130
    done.clear()
    code, said = run(capsys, *words, tmp_path / "a.npy")
    assert (code, len(done)) == (0, 2), said
    for suffix in (".npy", ".tsv"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not list(tmp_path.glob(".a.npy*"))


def test_the_same_command_twice_at_once_writes_whole_parts(
    folder: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnascale.evaluate import embed_files

    words = ("embed", folder, fasta, "--device", "cpu", "--out")
    assert run(capsys, *words, tmp_path / "whole.npy")[0] == 0
    real, entered = embed_files.embed, []

    def while_another_runs(*arguments: object) -> object:
        rows = real(*arguments)  # type: ignore[arg-type]
        yield next(rows)  # half of a part is written
        if not entered:
            entered.append(1)
            assert run(capsys, *words, tmp_path / "a.npy")[0] == 0
            assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
        yield from rows

    monkeypatch.setattr(embed_files, "embed", while_another_runs)
    run(capsys, *words, tmp_path / "a.npy")
    assert entered
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_letters_that_are_no_bases_are_refused(model: LanguageModel) -> None:
    for letters in (b"ACG-T1", b"AC\nGT"):
        with pytest.raises(DataError, match="the sequence 'x' has letters that are no bases"):
            list(embed(model, [("x", letters)]))


def test_two_processes_write_the_file_of_one(folder: Path, fasta: Path, tmp_path: Path) -> None:
    from jobs import dnascale

    with fasta.open("a") as file:
        for number in range(1200):
            file.write(f">more{number}\n{SEQUENCES['s3'].decode() * 3}\n")
    for processes in (1, 2):
        outcome = dnascale(
            "embed", folder, fasta, "--device", "cpu", "--out", tmp_path / f"{processes}.parquet", processes=processes
        )
        assert outcome.code == 0, outcome.output
        assert outcome.output.count("1,207 vectors") == 1
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_windows_of_one_base_and_without_a_base(model: LanguageModel) -> None:
    one = [w.values for w in embed(model, [("x", b"ANC")], EmbedOptions(per="window", window=1))]
    bases = [w.values for w in embed(model, [("x", b"ANC")], EmbedOptions(per="base"))]
    assert np.isnan(one[1]).all()
    assert np.isfinite(bases[1]).all()
    np.testing.assert_array_equal(np.stack(one)[[0, 2]], np.stack(bases)[[0, 2]])


def test_the_names_of_the_package_are_imported_when_they_are_used() -> None:
    code = (
        "import sys, dnascale; assert not {'torch', 'numpy'} & set(sys.modules); from dnascale import embed, load_model;"
        "from dnascale.evaluate import embed as module; assert embed is module.embed; assert not hasattr(dnascale, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_sequence_without_bases_keeps_its_place(model: LanguageModel) -> None:
    found = list(embed(model, [("a", b"ACGT"), ("none", b""), ("one", b"A")]))
    assert [one.name for one in found] == ["a", "none", "one"]
    assert [bool(np.isnan(one.values).all()) for one in found] == [False, True, False]
