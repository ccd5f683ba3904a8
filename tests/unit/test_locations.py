"""Where inputs may be: files, folders, patterns, URLs, pipes, standard input; and what is never written down of them."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
from formats import twobit_of
from servers import Fault, Server, serving

from dnascale.data import sources
from dnascale.data.prepare import PrepareOptions, prepare
from dnascale.data.prepare.plan import stamp
from dnascale.data.shards import load_dataset
from dnascale.data.sources import Input, ReadReport, Record, find, given
from dnascale.errors import DataError, UsageError

pytest.importorskip("aiohttp")
ONE, TWO = b">one\nACGTacgt\n", b">two\nGGGG\n"


def read(input: Input) -> list[tuple[str, bytes]]:
    records: list[Record] = list(sources.read(input, report=ReadReport(input.name)))
    return [(record.name, record.bases[:]) for record in records]


def names(inputs: list[Input], root: object) -> list[str]:
    return [input.name.removeprefix(str(root)).lstrip("/") for input in inputs]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNASCALE_URLS", "{}")
    for name in ("DNASCALE_STDIN", "DNASCALE_PIPES"):
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------------------------------------- folders


def test_of_a_folder_the_files_of_sequences_are_taken_in_order(tmp_path: Path) -> None:
    for name in ("b.fa", "a/z.FASTA.gz", "a/c.gbff", "d.2bit", "e.parquet", "README.md", "b.fa.fai", "x.gff3.gz",
                 "report.jsonl", "samples.tsv", ".hidden.fa", ".git/y.fa", "noend", "md5.txt"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(ONE)
    left_out: list[str] = []
    inputs = find([str(tmp_path)], left_out)
    assert names(inputs, tmp_path) == ["a/c.gbff", "a/z.FASTA.gz", "b.fa", "d.2bit", "e.parquet"]
    assert [input.bytes for input in inputs] == [len(ONE)] * 5
    left = [".hidden.fa", "README.md", "b.fa.fai", "md5.txt", "noend", "report.jsonl", "samples.tsv", "x.gff3.gz"]
    assert left_out == [str(tmp_path / name) for name in left]


def test_a_data_set_in_the_folder_of_its_inputs_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_text(">a\nACGT\n")
    prepare([str(tmp_path)], tmp_path / "out", PrepareOptions(valid=0))
    (tmp_path / "again.preparing" / "shards" / "train").mkdir(parents=True)
    (tmp_path / "again.preparing" / "shards" / "train" / "shard-000000.tar.records.parquet").touch()
    left_out: list[str] = []
    assert [input.name for input in find([str(tmp_path)], left_out)] == [str(tmp_path / "a.fa")]
    assert len([name for name in left_out if name.endswith(".records.parquet")]) == 2


def test_of_a_folder_of_tables_the_tables_are_taken(tmp_path: Path) -> None:
    for name in ("b.csv.gz", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    left_out: list[str] = []
    assert names(find([str(tmp_path)], left_out), tmp_path) == ["a.jsonl", "b.csv.gz"]
    assert left_out == [str(tmp_path / "notes.txt")]


def test_a_folder_without_sequences_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"is a folder without files of sequences \(1 others\)"):
        find([str(tmp_path)])


def test_a_file_in_a_folder_and_by_its_name_is_named_twice(tmp_path: Path) -> None:
    (tmp_path / "a.fa").write_bytes(ONE)
    with pytest.raises(DataError, match="are one file, which would count double"):
        find([str(tmp_path), str(tmp_path / "a.fa")])


def test_a_file_url_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "a b.fa").write_bytes(ONE)
    (input,) = find([(tmp_path / "a b.fa").as_uri()])
    assert read(input) == [("one", b"ACGTacgt")]


# ------------------------------------------------------------------------------------- pipes and stdin


def test_a_named_pipe_is_read_once_and_is_another_input_each_time(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (first,), (second,) = find([str(pipe)]), find([str(pipe)])
    assert first.version != second.version
    writer = threading.Thread(target=pipe.write_bytes, args=[gzip.compress(ONE * 1 + TWO)])
    writer.start()
    before = stamp(first.location, first.bytes)
    assert read(first) == [("one", b"ACGTacgt"), ("two", b"GGGG")]
    writer.join()
    assert stamp(first.location, first.bytes) == before == (0, 0)


@pytest.mark.parametrize("how", ["pipe", "file"])
@pytest.mark.parametrize("form", ["fasta", "gzip", "parquet"])
def test_standard_input_is_read_also_in_a_process_with_another_one(tmp_path: Path, how: str, form: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "in"
    if form == "parquet":
        pq.write_table(pa.table({"id": ["one"], "seq": ["ACGTacgt"]}), path)
    else:
        path.write_bytes(gzip.compress(ONE) if form == "gzip" else ONE)
    inner = (
        "import json, sys; from dnascale.data.sources import *; "
        "print([(r.name, r.bases[:].decode()) for r in read(Input(**json.loads(sys.argv[1])))])"
    )
    outer = (
        "import json, subprocess, sys; from dataclasses import asdict; from dnascale.data.sources import *; "
        "from dnascale.data.sources.given import inherited; (i,) = find(['-']); "
        f"subprocess.run([sys.executable, '-c', {inner!r}, json.dumps(asdict(i))], stdin=subprocess.DEVNULL, "
        "pass_fds=inherited(), check=True)"
    )
    with path.open("rb") as file:
        stdin = {"stdin": file} if how == "file" else {"input": file.read()}
        done = subprocess.run([sys.executable, "-c", outer], capture_output=True, check=False, **stdin)  # type: ignore[call-overload]
    assert done.stdout.decode().strip() == "[('one', 'ACGTacgt')]", done.stderr.decode()


def test_what_a_command_writes_is_an_input_of_workers_too(tmp_path: Path) -> None:
    """As `<(command)` of a shell."""
    command = (
        f"{sys.executable} -m dnascale prepare --valid 0 --workers 2 --out {tmp_path / 'out'} "
        f"<(printf '>one\\nACGTacgt\\n') <(printf '>two\\nGGGG\\n')"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert load_dataset(tmp_path / "out").splits["train"].bases == 12


def test_no_secret_of_a_url_is_in_what_prepare_writes(server: Server, tmp_path: Path) -> None:
    server.files["/a.fa"], server.files["/bad.fa"] = ONE, b">x\nAC-T\n"
    login = server.url.replace("//", "//user:hunter2@")
    for path, code in (("/a.fa", 0), ("/bad.fa", 3), ("/none.fa", 3)):
        command = [sys.executable, "-m", "dnascale", "prepare", "--valid", "0", "--workers", "2"]
        sources_ = [f"{login}{path}?token=s3cret", f"{login}/a.fa?token=s3cret&copy=1"][: 1 + (code == 3)]
        out = tmp_path / path.strip("/")
        done = subprocess.run([*command, "--out", str(out), *sources_], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
        for secret in ("hunter2", "s3cret"):
            assert secret not in done.stdout + done.stderr
            assert secret.encode() not in written
    assert list(tmp_path.glob("*.preparing")), "what was read is kept, so that its files were looked at"


def test_a_terminal_is_no_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    with pytest.raises(DataError, match="is a terminal"):
        find(["-"])


# ------------------------------------------------------------------------------------------------- URLs


def test_a_url_is_read_whatever_its_format_and_compression(server: Server) -> None:
    server.files = {"/a.fa": ONE, "/b": gzip.compress(TWO), "/c.csv": b"id,seq\nx,ACGT\n"}
    inputs = find([f"{server.url}{path}" for path in server.files])
    assert [input.bytes for input in inputs] == [len(content) for content in server.files.values()]
    assert [read(input) for input in inputs] == [[("one", b"ACGTacgt")], [("two", b"GGGG")], [("x", b"ACGT")]]


def test_random_access_formats_are_read_from_a_url(server: Server) -> None:
    records = [("chr1", b"ACGTNNNNacgtnnnnGGG"), ("chrM", b"tttttN")]
    server.files["/genome.2bit"] = twobit_of(records)
    (input,) = find([f"{server.url}/genome.2bit"])
    assert read(input) == records


def test_credentials_are_used_and_written_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/a.fa"] = ONE
    url = server.url.replace("//", "//user:hunter2@") + "/a.fa?token=s3cret"
    (input,) = find([url])
    assert input.name == f"{server.url}/a.fa"
    kept = json.dumps(asdict(input))
    assert not any(secret in kept for secret in ("hunter2", "user", "s3cret", "token"))
    assert read(Input(**json.loads(kept))) == [("one", b"ACGTacgt")]
    request = server.requests[-1]
    assert request.path == "/a.fa?token=s3cret"
    assert request.headers["Authorization"].startswith("Basic ")
    server.always = lambda _: Fault("403")
    with pytest.raises(DataError, match="check the credentials") as caught:
        read(input)
    chain = repr(caught.value) + repr(caught.value.__cause__) + repr(caught.value.__context__)
    assert not any(secret in chain for secret in ("hunter2", "s3cret"))
    monkeypatch.setenv("DNASCALE_URLS", "{}")
    with pytest.raises(DataError, match=r"what followed '\?' in this URL is not known here"):
        read(input)


def test_urls_that_differ_in_their_query_are_different_inputs(server: Server) -> None:
    urls = [f"{server.url}/get?id={number}" for number in (1, 2)]
    one, two = find(urls)
    assert (one.location != two.location, one.name == two.name) == (True, True)
    assert find(urls) == [one, two]
    with pytest.raises(DataError, match="are one file"):
        find([urls[0], urls[0]])


def test_a_folder_and_a_pattern_of_a_web_server(tmp_path: Path) -> None:
    (tmp_path / "set" / "more").mkdir(parents=True)
    for name, content in (("b.fa", ONE), ("a.fa.gz", gzip.compress(TWO)), ("README", b"x"), ("more/c.fna", ONE)):
        (tmp_path / "set" / name).write_bytes(content)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_address[1]}/set/"
        left_out: list[str] = []
        inputs = find([url], left_out)
        assert names(inputs, url) == ["a.fa.gz", "b.fa", "more/c.fna"]
        assert left_out == [f"{url}README"]
        assert read(inputs[0]) == [("two", b"GGGG")]  # a server that knows no byte ranges
        assert names(find([f"{url}*.fa"]), url) == ["b.fa"]
        with pytest.raises(DataError, match="no file matches"):
            find([f"{url}*.2bit"])
        web.shutdown()


def test_a_scheme_that_is_not_known_is_an_error() -> None:
    with pytest.raises(UsageError, match="nothing:// is not known"):
        find(["nothing://host/a.fa"])


def test_s3_files_folders_and_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    pytest.importorskip("s3fs")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "testing")
    host = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    host.start()
    try:
        endpoint = "http://{}:{}".format(*host.get_host_and_port())
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
        client.create_bucket(Bucket="genomes")
        for key, content in (("set/b.fa", ONE), ("set/more/a.fa.gz", gzip.compress(TWO)), ("set/notes.txt", b"x")):
            client.put_object(Bucket="genomes", Key=key, Body=content)
        left_out: list[str] = []
        inputs = find(["s3://genomes/set/"], left_out)
        assert [input.name for input in inputs] == ["s3://genomes/set/b.fa", "s3://genomes/set/more/a.fa.gz"]
        assert left_out == ["s3://genomes/set/notes.txt"]
        assert [read(input) for input in inputs] == [[("one", b"ACGTacgt")], [("two", b"GGGG")]]
        (one,) = find(["s3://genomes/set/*.fa"])
        assert (one.name, one.bytes) == ("s3://genomes/set/b.fa", len(ONE))
        assert find(["s3://genomes/set/b.fa"]) == [one]
        with pytest.raises(DataError, match="end it with '/'"):
            find(["s3://genomes/set"])
        with pytest.raises(DataError, match="not found"):
            find(["s3://genomes/none.fa"])
        client.put_object(Bucket="genomes", Key="set/b.fa", Body=TWO)
        assert find(["s3://genomes/set/b.fa"])[0].version != one.version
    finally:
        host.stop()


def test_a_location_without_a_secret_is_the_url_itself() -> None:
    assert given.hidden("https://host/a.fa") == given.revealed("https://host/a.fa") == "https://host/a.fa"
    assert "DNASCALE_URLS" in os.environ
    assert os.environ["DNASCALE_URLS"] == "{}"
