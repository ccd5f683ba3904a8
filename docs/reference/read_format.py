"""Reads a dnascale data set with numpy alone: prints the digest of each split's token stream. docs/reference/format.md

usage: python read_format.py DATA
"""

import hashlib
import json
import sys
import zlib
from pathlib import Path

import numpy as np


def read_split(folder: Path, description: dict, name: str) -> bytes:
    """The token stream of all shards of a split, as the bytes of its tokens."""
    index = description["splits"][name]["index"]
    for what in ("shards", "blocks"):
        assert hashlib.sha256((folder / index[what]["file"]).read_bytes()).hexdigest() == index[what]["sha256"]
    shards, blocks = (np.load(folder / index[what]["file"]) for what in ("shards", "blocks"))
    width = np.dtype(description["dtype"]).itemsize
    table = bytes.fromhex(description["translate"]) if description["translate"] else None
    separator = bytes([description["separator"]]) if description["layout"] == "records" else b""
    stream, first = b"", 0
    for number, shard in enumerate(shards):
        names = index["names"]
        data = (folder / (names % number if isinstance(names, str) else names[number])).read_bytes()
        assert hashlib.sha256(data).digest() == shard["sha256"].tobytes()
        for offset, tokens, crc32 in blocks[first : first + int(shard["blocks"])]:
            block = data[int(offset) : int(offset) + int(tokens) * width]
            assert zlib.crc32(block) == crc32
            stream += block.translate(table) + separator
        first += int(shard["blocks"])
    return stream


if __name__ == "__main__":
    data = Path(sys.argv[1])
    about = json.loads((data / "dataset.json").read_text())
    for split in about["splits"]:
        tokens = read_split(data, about, split)
        width = np.dtype(about["dtype"]).itemsize
        print(split, len(tokens) // width, hashlib.sha256(tokens).hexdigest())
