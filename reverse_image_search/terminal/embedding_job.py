"""What ``embed.sh`` writes: numbered parts, of which those that are missing can be made later."""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reverse_image_search.terminal.command import TerminalError
from reverse_image_search.terminal.embed_files import EmbeddedFile
from reverse_image_search.terminal.search_files import files_below


@dataclass(frozen=True)
class Job:
    """What is embedded into a folder; the same for all runs that go on with it."""

    folder: Path
    paths: list[str]
    part_size: int

    @classmethod
    def open(cls, options: argparse.Namespace, encoder_id: str) -> Job:
        """Begin, or go on with what was begun in the folder."""
        listed, facts_file = options.into / "paths.jsonl", options.into / "job.json"
        if not facts_file.exists():
            paths = [os.path.abspath(p) for name in options.images for p in _files(name)]
            if not paths:
                raise TerminalError("name image files, or folders with some")
            options.into.mkdir(parents=True, exist_ok=True)
            _write(listed, _lines(paths))
            facts = {"encoder_id": encoder_id, "part_size": options.part_size}
            _write(facts_file, (json.dumps(facts) + "\n").encode())
        facts = json.loads(facts_file.read_text())
        if facts["encoder_id"] != encoder_id:
            raise TerminalError(
                f"{options.into} was begun with encoder {facts['encoder_id']}, and {encoder_id} is "
                "served. Name another folder"
            )
        return cls(options.into, _read_lines(listed), facts["part_size"])

    def parts(self) -> range:
        """Numbers of all parts."""
        return range(-(-len(self.paths) // self.part_size))

    def paths_of(self, part: int) -> list[str]:
        """Of the images of a part."""
        return self.paths[part * self.part_size : (part + 1) * self.part_size]

    def file(self, part: int, suffix: str) -> Path:
        """A file of a part."""
        return self.folder / f"part-{part:05}{suffix}"

    def is_done(self, part: int) -> bool:
        """The embeddings are the last file of a part that is written."""
        return self.file(part, ".npy").exists()

    def write(self, part: int, files: list[EmbeddedFile]) -> None:
        """Write a part: all of it, or no embeddings."""
        unreadable = [(file.path, file.reason) for file in files if file.reason]
        if unreadable:
            _write(self.file(part, ".unreadable.jsonl"), _lines(unreadable))
        rows = [file.embedding for file in files if file.embedding is not None]
        _write(self.file(part, ".jsonl"), _lines(file.path for file in files if not file.reason))
        content = io.BytesIO()
        np.save(content, np.stack(rows) if rows else np.empty((0, 0), np.float32))
        _write(self.file(part, ".npy"), content.getbuffer())


def _files(name: str) -> list[str]:
    return files_below(name) if os.path.isdir(name) else [name]


def _lines(values: Iterable[object]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def _read_lines(path: Path) -> list:
    return [json.loads(line) for line in path.open()]


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write a file so that it is there as a whole, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new", delete=False) as new:
        new.write(content)
        new.flush()
        os.fsync(new.fileno())
    os.chmod(new.name, 0o644)
    os.rename(new.name, path)
