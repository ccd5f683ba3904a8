"""The report in a real browser: every figure is drawn, nothing is complained of, the numbers are those of metrics.jsonl."""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dnascale.report.page import write_report
from dnascale.report.serve import open_server

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is found: make test-packages installs it (Debian)")

FIGURES = ["loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu", "data_wait", "memory_gb", "by_base"]


def line(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "tokens": step * 2048, "seconds": step / 7, "nats_per_base": 1.25 + 1 / step, "learning_rate": 1e-3 / step,
            "gradient_norm": 0.5 + 1 / step, "tokens_per_second": 14000.0 + step, "mfu": 0.31, "data_wait_max": 0.012, "memory_gb": 2.5,
            **{f"loss_{base}": 1.2 + number / 10 for number, base in enumerate("acgt")}}  # fmt: skip


def make_run(folder: Path, name: str = "human") -> Path:
    run = folder / name
    run.mkdir()
    (run / "config.yaml").write_text(f"run: {{dir: {name}}}\ntrain: {{steps: 400}}\n")
    lines = [line(step) for step in range(10, 401, 10)]
    lines += [{"kind": "valid", "step": step, "valid_loss": 1.26 + 1 / step} for step in (200, 400)]
    lines += [{"kind": "checkpoint", "step": 200}, {"kind": "stop", "step": 300, "reason": "SIGTERM"}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    baselines = [
        {"name": "uniform (ln 4)", "nats_per_base": 1.3863},
        {"name": "Markov order 5", "nats_per_base": 1.3317},
    ]
    evaluation = {"step": 400, "split": "valid", "model": {"nats_per_base": 1.2613}, "baselines": baselines}
    (run / "evaluation-valid.json").write_text(json.dumps(evaluation))
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        opened = engine.chromium.launch(executable_path=BROWSER, args=arguments)
        yield opened
        opened.close()


def open_page(browser: Any, address: str, **options: Any) -> tuple[Any, list[str]]:
    """The page, and a list that grows by what the browser complains of."""
    tab = browser.new_page(**options)
    complaints: list[str] = []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on(
        "request",
        lambda request: complaints.append(request.url) if not request.url.startswith((address, "data:")) else None,
    )
    tab.goto(address)
    tab.wait_for_selector("#figures canvas")
    return tab, complaints


def colours(tab: Any, figure: str) -> int:
    """How many different colours a canvas shows: one, if nothing is drawn."""
    return tab.evaluate(
        """name => {
            const canvas = document.querySelector(`#figure-${name} canvas`);
            const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
            return new Set(new Uint32Array(data.buffer)).size;
        }""",
        figure,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_every_figure_is_drawn_without_a_complaint_at_any_width(
    browser: Any, tmp_path: Path, scheme: str, width: int
) -> None:
    write_report([make_run(tmp_path)], tmp_path / "r.html")
    tab, complaints = open_page(
        browser, (tmp_path / "r.html").as_uri(), viewport={"width": width, "height": 800}, color_scheme=scheme
    )
    for axis in ("tokens", "training time", "step"):
        tab.get_by_role("button", name=f"by {axis}").click()
        tab.wait_for_timeout(50)
        assert {name: colours(tab, name) > 5 for name in FIGURES} == dict.fromkeys(FIGURES, True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    tab.close()


def test_the_numbers_of_the_page_are_those_of_metrics_jsonl(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write_report([run], tmp_path / "r.html")
    tab, complaints = open_page(browser, (tmp_path / "r.html").as_uri())
    assert tab.locator("[data-key=loss] b").inner_text() == f"{line(400)['nats_per_base']:.4f}"
    assert tab.locator("[data-key=valid_loss] b").inner_text() == "1.2625"
    assert tab.locator("[data-key=best_baseline] b").inner_text() == "1.3317"
    assert tab.locator("[data-key=tokens_per_second] b").inner_text() == "14,205"
    drawn = tab.evaluate("plots.map(({plot}) => plot.data)")
    whole = [line(step) for step in range(10, 401, 10)]
    keys = [
        "nats_per_base",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
        "mfu",
        "data_wait_max",
        "memory_gb",
        "loss_a",
    ]
    for (x, y, *_), key in zip(drawn, keys, strict=True):
        assert x == [one["step"] for one in whole]
        assert y == [one[key] for one in whole]
    tab.evaluate("plots[0].plot.setLegend({idx: 4})")
    assert tab.locator("#figure-loss .u-value").all_inner_texts()[:2] == ["50", "1.2700"]
    assert complaints == []
    tab.close()


def test_several_runs_are_overlaid_and_compared_in_a_table(browser: Any, tmp_path: Path) -> None:
    write_report([make_run(tmp_path, "a"), make_run(tmp_path, "b")], tmp_path / "r.html")
    tab, complaints = open_page(browser, (tmp_path / "r.html").as_uri())
    assert tab.locator("#comparison thead th").all_inner_texts() == ["", "a", "b"]
    assert tab.locator("#comparison tbody tr").first.locator("td").all_inner_texts() == ["1.2525", "1.2525"]
    assert tab.locator("#figure-loss .u-label").all_inner_texts() == ["step", "a", "a valid", "b", "b valid"]
    assert complaints == []
    tab.close()


def test_a_served_page_follows_the_run_and_says_when_the_server_is_gone(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    server = open_server([run], port=0, every=1)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    tab, complaints = open_page(browser, f"http://127.0.0.1:{server.server_address[1]}/")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(1000)) + "\n")
    playwright.expect(tab.locator("[data-key=loss] b")).to_have_text("1.2510", timeout=10_000)
    assert colours(tab, "loss") > 5
    assert complaints == []
    server.shutdown()
    server.server_close()
    playwright.expect(tab.locator("#subtitle")).to_contain_text("no longer answers", timeout=10_000)
    tab.close()


def test_an_evaluation_is_shown_by_part_with_its_interval(browser: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run / "evaluation-valid.json"
    part = {"name": "first", "nats_per_base": 1.21, "accuracy": 0.456, "bases": 12345}
    detail = {
        "unit": "group", "units": 321, "loss": {"value": 1.2613, "low": 1.24, "high": 1.28}, "ahead_of": "context 4+4",
        "ahead": {"value": 0.0123, "low": 0.01, "high": 0.015}, "parts": {"position": [part]},
    }  # fmt: skip
    path.write_text(json.dumps(json.loads(path.read_text()) | {"detail": detail}))
    write_report([run], tmp_path / "r.html")
    tab, complaints = open_page(browser, (tmp_path / "r.html").as_uri())
    said = tab.locator("body").text_content()
    for words in (
        "1.2613 [1.2400, 1.2800]",
        "less than context 4+4",
        "0.0123 [0.0100, 0.0150]",
        "321 groups",
        "position: first",
    ):
        assert words in said
    assert "1.2100 nats, 45.6 % right, 12,345 bases" in said.replace("\u202f", ",").replace("\u00a0", ",")
    assert complaints == []
    tab.close()
