"""A tree of files around the sandbox that no reader may open or change: compared by content, and listened to by inotify."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import struct
import sys
from pathlib import Path

import h5py
import numpy as np

from fuzz.layout import BOX, HOME, SECRET

IN_ACCESS, IN_MODIFY, IN_ATTRIB, IN_OPEN, IN_ISDIR = 0x1, 0x2, 0x4, 0x20, 0x40000000
IN_MOVED, IN_CREATE, IN_DELETE = 0xC0, 0x100, 0x200
HEARD = {IN_ACCESS: "read", IN_MODIFY: "changed", IN_OPEN: "opened", IN_CREATE: "made", IN_DELETE: "removed"}
FILES = ("key.txt", "notes.txt", ".cache/huggingface/token", ".ssh/id_ed25519", "experts/000.safetensors", "data/metadata.json")


class Sentinels:
    """The tree, with what it held when it was made."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self._start()

    def _start(self) -> None:
        self._make()
        self.before = self.content()
        self._ear = Ear([path for path in (self.base, *self.base.rglob("*")) if path.is_dir() and not self._is_ours(path)])

    def _make(self) -> None:
        for name in FILES:
            path = self.base / HOME / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(SECRET * 400)
        with h5py.File(self.base / HOME / "other.h5", "w") as file:
            file["numbers"] = np.frombuffer(SECRET * 400, np.uint8)[: len(SECRET) * 400 // 4 * 4].view(np.float32)
        (self.base / BOX).mkdir(parents=True)
        for folder in (self.base, *(self.base / BOX).parents):
            if folder.is_relative_to(self.base):
                (folder / "above.txt").write_bytes(SECRET)

    def _is_ours(self, path: Path) -> bool:
        return path.is_relative_to(self.base / BOX) or path.is_relative_to(self.base / "templates")

    def content(self) -> dict[str, str]:
        """Path → what is there, of everything but the sandbox and the templates."""
        found = {}
        for folder, folders, files in os.walk(self.base):
            folders[:] = [name for name in folders if not self._is_ours(Path(folder, name))]
            for name in (*folders, *files):
                path = Path(folder, name)
                found[str(path.relative_to(self.base))] = (
                    f"link to {path.readlink()}"
                    if path.is_symlink()
                    else hashlib.sha256(path.read_bytes()).hexdigest()
                    if path.is_file()
                    else "folder"
                )
        return found

    def changes(self) -> list[str]:
        """What was opened or changed since the last call; the tree is then made anew."""
        heard = self._ear.heard()
        now = self.content()
        changed = [
            f"changed: {name}" for name in sorted(self.before.keys() | now.keys()) if self.before.get(name) != now.get(name)
        ]
        self._ear.heard()  # our own reading
        if changed:
            self._restore()
        return changed + heard

    def forget(self) -> None:
        """What was heard since the last call is nobody's fault."""
        self._ear.heard()

    def _restore(self) -> None:
        shutil.rmtree(self.base / HOME, ignore_errors=True)
        for path in self.base.iterdir():
            if path.name not in ("templates", "level", HOME):
                path.unlink() if not path.is_dir() else shutil.rmtree(path)
        shutil.rmtree(self.base / "level", ignore_errors=True)
        self._ear.close()
        self._start()

    def close(self) -> None:
        self._ear.close()


class Ear:
    """Hears through inotify(7) that a file in one of the folders is opened, read or changed, in C too; deaf outside Linux."""

    def __init__(self, folders: list[Path]) -> None:
        self._descriptor = -1
        self._folders: dict[int, Path] = {}
        if sys.platform != "linux":
            return
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        mask = IN_ACCESS | IN_MODIFY | IN_OPEN | IN_CREATE | IN_DELETE | IN_MOVED
        for folder in folders:
            self._folders[libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask)] = folder

    def heard(self) -> list[str]:
        """What happened to files since the last call."""
        found = set()
        for watch, mask, name in self._events():
            if not mask & IN_ISDIR:
                what = next((word for bit, word in HEARD.items() if mask & bit), "moved")
                found.add(f"outside: {what} {self._folders.get(watch, Path('?')) / name}")
        return sorted(found)

    def _events(self) -> list[tuple[int, int, str]]:
        events = []
        while self._descriptor >= 0:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                break
            at = 0
            while at < len(data):
                watch, mask, _, length = struct.unpack_from("iIII", data, at)
                name = data[at + 16 : at + 16 + length].rstrip(b"\0")
                events.append((watch, mask, os.fsdecode(name)))
                at += 16 + length
        return events

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
