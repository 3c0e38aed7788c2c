"""A long command in parts, each done only once: after an interruption it continues with the part it was in.

<folder>/parts/config.json     the settings; a run with other settings needs a fresh start
<folder>/parts/<part>.json     {"result": …, "seconds": …} of a part that is done, {"seconds": …} of an interrupted one
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..system.disk import path_errors, write_file
from ..system.documents import read_document

Say = Callable[[str], None]


class Parts:
    """The parts of one run.

    folder: where the run is, or will be. settings: what results depend on, JSON-able. say: called with one line at the start
    and at the end of each part. fresh: delete an earlier run in the folder.

    Raises:
        ConfigError: the folder holds files that no run made, or a run with other settings and `fresh` is not set.
        DiskSpaceError: the disk is full. PathError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], say: Say, *, fresh: bool = False) -> None:
        self.folder, self._say = folder, say
        ours = json.loads(json.dumps(settings))
        if folder.is_dir() and any(folder.iterdir()):
            kept = self._read("config")
            if not kept:
                raise ConfigError(f"{folder} holds files that are not such a run; choose another folder")
            if fresh:
                shutil.rmtree(folder)
            elif kept != ours:
                changed = ", ".join(f"{name}={kept.get(name)}" for name in ours if kept.get(name) != ours[name])
                raise ConfigError(f"{folder} holds a run with {changed}; continue it with these, or start over with --fresh")
        with path_errors(folder):
            (folder / "parts").mkdir(parents=True, exist_ok=True)
        self._write("config", ours)

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of the part `name`: the kept one, or that of `work()`, which is JSON-able and kept from now on."""
        record = self._read(name)
        if "result" in record:
            self._say(f"{name}: done before in {record['seconds']:.0f} s, kept")
            return record["result"]
        self._say(f"{name} …")
        started, before = time.perf_counter(), record.get("seconds", 0.0)
        try:
            record["result"] = work()
        finally:
            record["seconds"] = before + time.perf_counter() - started
            self._write(name, record)
        self._say(f"{name}: {record['seconds']:.0f} s")
        return record["result"]

    def seconds(self) -> dict[str, float]:
        """Part → its seconds, in the order in which they ended, with interrupted attempts (unless the process was killed)."""
        paths = sorted((self.folder / "parts").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return {path.stem: record["seconds"] for path in paths if "seconds" in (record := self._read(path.stem))}

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / "parts" / f"{name}.json"
        return read_document(path, dict[str, Any], ConfigError) if path.exists() else {}

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        path = self.folder / "parts" / f"{name}.json"
        with path_errors(path):
            write_file(path, json.dumps(record).encode())
