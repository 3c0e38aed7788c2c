"""Files and folders appear whole or not at all; a full disk is told as such; locks hold."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from m3dt_agent.errors import BankError, DiskSpaceError, PathError
from m3dt_agent.system.disk import (
    disk_space_errors,
    file_lock,
    open_regular,
    own_path,
    path_errors,
    publish,
    replace_folder,
    require_new_folder,
    require_space,
    restore_replaced,
    scratch_folder,
    user_path,
    whole_file,
    write_file,
)
from m3dt_agent.system.platforms import locked


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def make_folder(path: Path, content: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(content)
    return path


@pytest.mark.parametrize(("content", "wanted"), [(b"\x00\n", b"\x00\n"), ("é\n", "é\n".encode())])
def test_bytes_and_text_are_written_as_they_are(content: bytes | str, wanted: bytes, tmp_path: Path) -> None:
    for _ in range(2):  # new, and in place of what was there
        write_file(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_others_may_read_what_the_user_lets_them_read(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_file_that_is_not_finished_leaves_the_old_one(tmp_path: Path) -> None:
    write_file(tmp_path / "a.png", "old")
    with contextlib.suppress(KeyboardInterrupt), whole_file(tmp_path / "a.png") as temporary:
        assert temporary.suffix == ".png"  # matplotlib and ffmpeg tell the format from it
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_text() == "old"


def test_no_room_for_a_file_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "file", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskSpaceError, match=r"no room left on the disk while writing .*/file: "):
            write_file(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("something else"), False),
    ],
)
def test_errors_of_a_full_disk_are_told_from_others(error: Exception, told: bool) -> None:
    with pytest.raises(DiskSpaceError if told else type(error)) as raised, disk_space_errors(Path("here")):
        raise error
    assert isinstance(raised.value, DiskSpaceError) is told


def test_too_little_space_is_told_beforehand(tmp_path: Path) -> None:
    require_space(tmp_path, 1)
    with pytest.raises(DiskSpaceError, match=r"needs 1,000,000,000,000\.0 MB"):
        require_space(tmp_path, 10**18)


def test_a_new_folder_is_none_or_an_empty_one(tmp_path: Path) -> None:
    require_new_folder(tmp_path / "none")
    require_new_folder(tmp_path)
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(BankError, match="exists and is not an empty folder"):
            require_new_folder(path)


def test_a_scratch_folder_is_gone_at_the_end_and_after_an_error(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "parent") as scratch:
        assert list(scratch.iterdir()) == []
        make_folder(scratch / "a", "kept")
        publish(scratch / "a", tmp_path / "parent" / "deeper" / "a")
    with contextlib.suppress(KeyboardInterrupt), scratch_folder(tmp_path / "parent") as scratch:
        make_folder(scratch / "b", "lost")
        raise KeyboardInterrupt
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("file")] == ["parent/deeper/a/file"]
    assert [path.name for path in (tmp_path / "parent").iterdir()] == ["deeper"]


def test_scratch_folders_of_killed_processes_go_and_those_in_use_stay(tmp_path: Path) -> None:
    abandoned = tmp_path / ".writing-abandoned"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        assert first.exists()
        assert second.exists()
        assert not abandoned.exists()


def test_a_folder_is_not_published_over_another(tmp_path: Path) -> None:
    built, target = make_folder(tmp_path / "built", "new"), make_folder(tmp_path / "target", "old")
    with pytest.raises(PathError, match="not empty"):
        publish(built, target)
    assert (target / "file").read_text() == "old"


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_takes_the_place_of_another(exists: bool, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if exists:
        make_folder(target, "old")
    with scratch_folder(tmp_path) as scratch:
        replace_folder(make_folder(scratch / "new", "new"), target)
        assert list(scratch.iterdir()) == []
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_failure_between_the_two_renames_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, rename, renamed = make_folder(tmp_path / "target", "old"), os.rename, []

    def failing(source: Path, to: Path) -> None:
        renamed.append(source.name)
        if renamed == ["target", "new"]:
            full()
        rename(source, to)

    with monkeypatch.context() as patch, scratch_folder(tmp_path) as scratch:
        built = make_folder(scratch / "new", "new")
        patch.setattr(os, "rename", failing)
        with pytest.raises(DiskSpaceError, match="No space left"):
            replace_folder(built, target)
    assert renamed == ["target", "new", ".replaced-target"]
    assert (target / "file").read_text() == "old"


def test_the_new_folder_is_flushed_before_the_old_one_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built, target = make_folder(tmp_path / "built", "new"), make_folder(tmp_path / "target", "old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskSpaceError, match="No space left"):
            replace_folder(built, target)
    assert (target / "file").read_text() == "old"


def killed_replacement(root: Path, steps: int) -> bool:
    """Replaces root/data/target in a child that is killed before it calls the system once more than `steps` times; gives
    whether the child came to its end."""
    if (child := os.fork()) == 0:
        left = [steps]

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return original(*args, **kwargs)

            return call

        try:
            with scratch_folder(root) as scratch:
                built = make_folder(scratch / "new", "new")
                (built / "second").write_text("new")
                for name in ("rename", "fsync", "unlink", "rmdir", "mkdir", "open"):
                    setattr(os, name, counted(getattr(os, name)))
                replace_folder(built, root / "data" / "target")
            os._exit(0)
        finally:
            os._exit(3)
    return os.waitpid(child, 0)[1] == 0


def test_a_kill_at_any_step_of_a_replacement_loses_nothing(tmp_path: Path) -> None:
    """SIGKILL before the n-th call of the system, for every n: old or new is there, whole, once anybody looks for it."""
    seen: list[tuple[str, ...]] = []
    for n in range(100):
        root = tmp_path / str(n)
        target = make_folder(root / "data" / "target", "old")
        (target / "second").write_text("old")
        ended = killed_replacement(root, n)
        missing = not target.exists()
        restore_replaced(target.parent)
        found = {(target / name).read_text() for name in ("file", "second")}
        assert len(found) == 1, f"half old, half new after {n} calls"
        assert found == {"old"} or not missing
        seen.append((*found, "restored" if missing else "there"))
        with scratch_folder(root), scratch_folder(target.parent):  # the next writers remove what is left
            pass
        assert [path.name for path in root.iterdir()] == ["data"]
        assert [path.name for path in target.parent.iterdir()] == ["target"]
        if ended:
            break
    assert ended
    assert set(seen) == {("old", "there"), ("old", "restored"), ("new", "there")}


def test_a_folder_that_another_process_is_replacing_is_waited_for(tmp_path: Path) -> None:
    make_folder(tmp_path / ".replaced-target", "old")  # the moment between the two renames
    with locked(tmp_path):
        reader = threading.Thread(target=restore_replaced, args=(tmp_path,))
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
        make_folder(tmp_path / "target", "new")
    reader.join(10)
    assert (tmp_path / "target" / "file").read_text() == "new"


@pytest.mark.parametrize("step", ["before the lock file", "before the lock"])
def test_a_scratch_folder_whose_maker_was_killed_before_its_lock_is_removed(step: str, tmp_path: Path) -> None:
    make_folder(tmp_path / ".writing-killed" / "inner", "half")
    if step == "before the lock":
        (tmp_path / ".writing-killed" / "lock").touch()
    with scratch_folder(tmp_path) as mine, scratch_folder(tmp_path):
        assert mine.exists()  # it is locked
        assert not (tmp_path / ".writing-killed").exists()
    assert list(tmp_path.iterdir()) == []


def test_many_processes_make_scratch_folders_side_by_side(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from m3dt_agent.system.disk import publish, scratch_folder
root, me = Path(sys.argv[1]), sys.argv[2]
for i in range(60):
    with scratch_folder(root) as scratch:
        (scratch / "file").write_text(me)
        publish(scratch, root / f"{me}-{i}")
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(i)]) for i in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{p}-{i}" for p in range(3) for i in range(60))


def test_scratch_folders_are_not_looked_for_behind_links(tmp_path: Path) -> None:
    outside = make_folder(tmp_path / "outside", "theirs")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / ".writing-link").symlink_to(outside)
    with scratch_folder(tmp_path / "inside"):
        pass
    assert [path.name for path in outside.iterdir()] == ["file"]


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with file_lock(tmp_path / "folder" / "lock"):
            entered.set()

    with file_lock(tmp_path / "folder" / "lock"):
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.1)
    assert entered.wait(10)
    other.join()


# -- paths that cannot be used -----------------------------------------------------------------------------------------------


def bad_paths(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """A path of every kind that the file system refuses, with what the message must say."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    return {
        "missing": (tmp_path / "no" / "such", "nothing here"),
        "file for folder": (tmp_path / "file" / "below", "a file where a folder should be"),
        "folder for file": (tmp_path / "folder", "a folder where a file should be"),
        "loop": (tmp_path / "loop", "symbolic link to itself"),
        "long": (tmp_path / ("x" * 300), "the name is too long"),
        "NUL": (tmp_path / "a\0b", "no path may hold such a character"),
        "surrogate": (tmp_path / "a\ud800b", "no path may hold such a character"),
        "device": (Path("/proc/self/nothing/there"), "nothing here"),
    }


def test_a_path_that_cannot_be_used_is_one_error_that_says_what_to_do(tmp_path: Path) -> None:
    for kind, (path, told) in bad_paths(tmp_path).items():
        with pytest.raises(PathError, match=told) as caught, path_errors(tmp_path), path.open("r+b"):
            pass
        assert kind in ("NUL", "surrogate") or str(path) in str(caught.value), kind  # the system's path, not the outer one
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EMFILE, errno.EIO])
def test_other_refusals_name_the_path(number: int, tmp_path: Path) -> None:
    with pytest.raises(PathError, match=str(tmp_path)), path_errors(tmp_path):
        raise OSError(number, os.strerror(number))


def test_errors_that_no_path_has_caused_pass_as_they_are(tmp_path: Path) -> None:
    errors: list[Exception] = [BankError("b"), BrokenPipeError(), ConnectionResetError(), TimeoutError(), ValueError("v")]
    for error in errors:
        with pytest.raises(type(error)) as caught, path_errors(tmp_path):
            raise error
        assert caught.value is error
    with pytest.raises(DiskSpaceError), path_errors(tmp_path):
        full()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, told in {"pipe": "a pipe", "zero": "a device", "": "a folder", "none": "nothing here"}.items():
        with pytest.raises(PathError, match=told):
            open_regular(tmp_path / name)
    (tmp_path / "file").write_bytes(b"x")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"x"


def test_a_users_path_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    assert user_path(Path("a/~")) == Path("a/~")
    for wrong, told in {
        "a\0b": "such a character",
        "\ud800": "such a character",
        "~nobody-here/x": "write the path in full",
    }.items():
        with pytest.raises(PathError, match=told):
            user_path(wrong)


def test_nothing_is_written_through_a_link_inside_a_folder(tmp_path: Path) -> None:
    (tmp_path / "home" / "real").mkdir(parents=True)
    (tmp_path / "home" / "link").symlink_to(tmp_path)
    (tmp_path / "home" / "real" / "dangling").symlink_to("nowhere")
    (tmp_path / "way").symlink_to("home")
    assert own_path(tmp_path / "way", "real/new") == tmp_path / "way" / "real" / "new"  # the folder itself may be a link
    for name in ("link", "link/x", "real/dangling"):
        with pytest.raises(PathError, match="nothing is written through one"):
            own_path(tmp_path / "home", name)
