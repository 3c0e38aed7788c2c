"""A long command in parts, each done once: an interrupted one continues with the part it was in.

<folder>/parts/config.json     what was asked for; another request needs a fresh start
<folder>/parts/<part>.json     {"result": …, "seconds": …} of a part that is done, {"seconds": …} of an interrupted one
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..disk import disk_space_errors, write_file
from ..errors import ConfigError

Say = Callable[[str], None]


class Parts:
    """The parts of one run in `folder`. settings: JSON-able, what results depend on. fresh: delete an earlier run there.

    Raises:
        ConfigError: the folder holds a run with other settings (and not `fresh`), or files that no run made.
        DiskSpaceError: no room.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], say: Say, *, fresh: bool = False) -> None:
        self.folder, self._say = folder, say
        ours = json.loads(json.dumps(settings))
        if folder.is_dir() and any(folder.iterdir()):
            kept = self._read("config")
            if not kept:
                raise ConfigError(f"{folder} holds something that is not such a run; choose another folder")
            if fresh:
                shutil.rmtree(folder)
            elif kept != ours:
                changed = ", ".join(f"{name}={kept.get(name)}" for name in ours if kept.get(name) != ours[name])
                raise ConfigError(f"{folder} holds a run with {changed}; continue it so, or start over with --fresh")
        with disk_space_errors(folder):
            (folder / "parts").mkdir(parents=True, exist_ok=True)
        self._write("config", ours)

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        """The result of the part `name`: as kept, or of `work`, whose JSON-able result is kept then."""
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
        """Seconds of every part so far, in the order they ended, interrupted attempts included (but for those of a kill -9)."""
        paths = sorted((self.folder / "parts").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return {path.stem: record["seconds"] for path in paths if "seconds" in (record := self._read(path.stem))}

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / "parts" / f"{name}.json"
        record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return record

    def _write(self, name: str, record: Mapping[str, Any]) -> None:
        path = self.folder / "parts" / f"{name}.json"
        with disk_space_errors(path):
            write_file(path, json.dumps(record).encode())
