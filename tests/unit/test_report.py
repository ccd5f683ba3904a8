"""What `dnascale report` reads of a run, and the page and server it makes of it."""

import json
import re
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from dnascale.cli import main
from dnascale.report.page import page, page_data, write_report
from dnascale.report.read import MAX_LINES, read_run
from dnascale.report.serve import open_server


def make_run(folder: Path, steps: int = 50, every: int = 10, **changes: object) -> Path:
    """A run's folder with numbers that are known."""
    (folder / "checkpoints" / "step-00000020").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000020" / "MANIFEST.json").write_text("{}")
    (folder / "config.yaml").write_text(
        f"data: {{path: nowhere}}\ntrain: {{steps: {steps}}}\noptimizer: {{betas: [0.9, 0.98]}}\n"
    )
    (folder / "environment.json").write_text('{"python": "3.12"}')
    lines: list[dict[str, object]] = [
        {"kind": "train", "step": step, "tokens": step * 100, "seconds": step / 10, "nats_per_base": 1.3 + 1 / step,
         "learning_rate": 1e-3, "gradient_norm": 0.5, "tokens_per_second": 1000.0 + step, "memory_gb": 2.5, "data_wait_max": 0.01} | changes
        for step in range(every, steps + 1, every)
    ]  # fmt: skip
    lines.append({"kind": "valid", "step": steps, "valid_loss": 1.3125})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_every_number_is_that_of_metrics_jsonl(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a"))
    assert run["train"]["step"] == [10, 20, 30, 40, 50]
    assert run["train"]["nats_per_base"] == [1.3 + 1 / step for step in (10, 20, 30, 40, 50)]
    assert run["summary"] == {
        "tokens_per_second": 1030.0, "data_wait_max": 0.01, "loss": 1.32, "valid_loss": 1.3125, "best_baseline": None,
        "step": 50, "total_steps": 50, "tokens": 5000, "memory_gb": 2.5, "seconds": 5.0,
    }  # fmt: skip
    assert run["config"]["optimizer.betas"] == "0.9 0.98"


def test_what_happened_to_a_run_is_told_in_the_order_of_steps(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    happened = [
        {"kind": "stop", "step": 30, "reason": "SIGTERM"},
        {"kind": "resume", "step": 30, "processes": 2, "engine": "plain"},
        {"kind": "skip", "step": 14, "reason": "not finite", "gradient_norm": None, "position": 8, "windows": 4},
        {"kind": "checkpoint", "step": 20},
    ]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in happened)
    (folder / "config-until-step-00000040.yaml").write_text("")
    events = read_run(folder)["events"]
    assert [(one["step"], one["kind"]) for one in events] == [
        (14, "skip"), (20, "checkpoint"), (30, "stop"), (30, "resume"), (40, "change"),
    ]  # fmt: skip
    assert events[0]["text"] == "left out: not finite (windows 8 to 11)"


def test_a_torn_last_line_and_numbers_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", nats_per_base=float("nan"))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    run = read_run(folder)
    assert run["train"]["nats_per_base"] == [None] * 5
    assert "NaN" not in page(page_data([folder])).partition('id="data">')[2].partition("</script>")[0]


def test_a_long_run_is_thinned_and_keeps_its_last_line(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "a", steps=2 * MAX_LINES + 5, every=1))
    assert run["thinned"] == 3
    assert len(run["train"]["step"]) <= MAX_LINES + 1
    assert run["train"]["step"][-1] == 2 * MAX_LINES + 5


def test_a_run_without_a_line_yet_is_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "metrics.jsonl").unlink()
    assert "no numbers yet" in page(page_data([folder]))


def test_the_page_fetches_nothing_and_names_cannot_end_its_script(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "environment.json").write_text(json.dumps({"command": ["</script><img src=x onerror=alert(1)>"]}))
    text = page(page_data([folder]))
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text)
    assert "<img" not in text
    held = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert held["runs"][0]["environment"]["command"] == "</script><img src=x onerror=alert(1)>"
    assert len(text) < 250_000


def test_the_command_writes_into_the_folder_of_one_run_and_beside_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    for words, made in (([a], a / "report.html"), ([a, b], tmp_path / "report.html")):
        with pytest.raises(SystemExit) as ended:
            main(["report", *map(str, words)])
        assert ended.value.code == 0
        assert made.read_text().startswith("<!doctype html>")


def test_a_folder_that_is_no_run_is_a_sentence_and_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path)])
    assert ended.value.code == 2
    assert "holds no run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("torn", ["", "train: [unclosed", "just words", "\x00\x00\x00"])
def test_a_configuration_that_is_torn_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], torn: str
) -> None:
    folder = make_run(tmp_path / "a")
    (folder / "config.yaml").write_text(torn)
    for command in ("report", "eval"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(folder)])
        assert ended.value.code == 2
        assert f"{folder / 'config.yaml'} " in capsys.readouterr().err


def test_files_of_others_that_are_named_as_ours_are_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    score = {"name": "counts", "nats_per_base": 1.3, "bits_per_base": 1.9}
    ours = {"run": "a", "step": 50, "split": "test", "model": score, "baselines": [score], "detail": None}
    (folder / "evaluation-test.json").write_text(json.dumps(ours))
    for name, text in (
        ("a", "[]"), ("b", "{not json"), ("c", '{"loss": 1}'), ("d", json.dumps(ours | {"model": 1.2})),
        ("e", json.dumps(ours | {"baselines": [{"name": "counts", "nats_per_base": None}]})), ("f", json.dumps(ours | {"baselines": None})), ("g", json.dumps(ours | {"baselines": [{"nats_per_base": 1.3}]})),
    ):  # fmt: skip
        (folder / f"evaluation-{name}.json").write_text(text)
    (folder / "data").mkdir()
    (folder / "data" / "dataset.json").write_text('{"splits": {"train": 7}}')
    (folder / "environment.json").write_text("{torn")
    found = read_run(folder)
    assert found["evaluations"] == [ours]
    assert found["summary"]["best_baseline"] == 1.3
    assert found["data"] == []


def test_an_evaluation_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    evaluation = {"split": "valid", "step": 50, "model": {"nats_per_base": float("nan")}, "baselines": []}
    (folder / "evaluation-valid.json").write_text(json.dumps(evaluation))
    write_report([folder], tmp_path / "report.html")
    assert (tmp_path / "report.html").is_file()


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    write_report([folder], tmp_path / "1.html")
    write_report([folder], tmp_path / "2.html")
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_the_server_follows_the_run_and_answers_no_other_host(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a")
    with open_server([folder], port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_address[1]}"
        assert server.server_address[0] == "127.0.0.1"
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"kind": "train", "step": 60, "tokens": 6000, "nats_per_base": 1.25}\n')
        with urllib.request.urlopen(f"{here}/data.json") as answer:
            assert json.load(answer)["runs"][0]["summary"]["loss"] == 1.25
        for path, headers, status in (("/", {"Host": "evil.example:80"}, 403), ("/metrics.jsonl", {}, 404)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(here + path, headers=headers))
            assert refused.value.code == status
        server.shutdown()
