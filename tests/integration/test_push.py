"""`dnascale export --push`, against a local server that answers as the Hub's HTTP interface does."""

import base64
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from jobs import Outcome, launch, train

from dnascale.data.shards import Dataset

TOKEN = "hf_" + "Canary" * 6


class Hub(ThreadingHTTPServer):
    """What was committed, and who asked."""

    def __init__(self, refuse: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.refuse = refuse
        self.files: dict[str, bytes] = {}
        self.created: list[dict[str, object]] = []
        self.tokens: set[str | None] = set()


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            if self.server.refuse:
                self.answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
                return
            self.server.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/me/model"})
        elif "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"http://{self.headers['Host']}/me/model/commit/abc", "commitOid": "abc"})
        else:  # e.g. /api/validate-yaml
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        if self.server.refuse:
            self.answer({"error": "Repository not found"}, 404)
            return
        self.answer({"id": "me/model", "sha": "abc", "siblings": []})

    def answer(self, content: object, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def run(human_cds: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push") / "run"
    train(folder, human_cds, "train.steps=2")
    return folder


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    server = Hub(refuse=getattr(request, "param", False))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def exported(*words: str | Path, **env: str) -> Outcome:
    """In a new process, since the Hub's library looks for its address when it is imported."""
    return launch([sys.executable, "-m", "dnascale", "export", *map(str, words)], **env)


def where(hub: Hub) -> dict[str, str]:
    return {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def test_the_folder_arrives_whole_and_the_token_nowhere_else(run: Path, tmp_path: Path, hub: Hub) -> None:
    out = tmp_path / "model"
    outcome = exported(run, out, "--push", "me/model", "--private", HF_TOKEN=TOKEN, **where(hub))
    assert outcome.code == 0, outcome.output
    assert "/me/model" in outcome.output.splitlines()[-1]
    (created,) = hub.created
    assert created["name"] == "model"
    assert created.get("private") or created.get("visibility") == "private"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        name: content for name, content in hub.files.items() if name != ".gitattributes"
    }
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert TOKEN not in outcome.output
    assert not any(TOKEN.encode() in content for content in hub.files.values())


@pytest.mark.parametrize("hub", [True], indirect=True)
def test_a_refusal_is_one_sentence_and_the_folder_stays(run: Path, tmp_path: Path, hub: Hub) -> None:
    out = tmp_path / "model"
    outcome = exported(run, out, "--push", "others/model", HF_TOKEN=TOKEN, **where(hub))
    assert outcome.code == 2
    assert f"{out} is written, but was not pushed to others/model: " in outcome.error
    assert TOKEN not in outcome.output
    assert (out / "model.safetensors").is_file()


def test_without_a_token_nothing_is_sent(run: Path, tmp_path: Path, hub: Hub) -> None:
    outcome = exported(run, tmp_path / "model", "--push", "me/model", HF_TOKEN="", **where(hub))
    assert (outcome.code, hub.tokens) == (2, set())
    assert "--push needs a token that may write, in the environment" in outcome.error
    assert not (tmp_path / "model").exists()
    assert "--private belongs to --push" in exported(run, tmp_path / "other", "--private").error


def test_no_network_is_a_sentence(run: Path, tmp_path: Path) -> None:
    outcome = exported(run, tmp_path / "model", "--push", "me/model", HF_TOKEN=TOKEN, HF_ENDPOINT="http://127.0.0.1:1")
    assert outcome.code == 2
    assert "is written, but was not pushed to me/model: " in outcome.error
