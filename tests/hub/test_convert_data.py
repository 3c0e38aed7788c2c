"""`import_datasets`: which tasks it imports, how it continues, what it replaces, and the command; formats: published/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_writers import (
    assert_holds,
    write_mt160,
)

from m3dt_agent import tasks
from m3dt_agent.cli import main
from m3dt_agent.data.episodes import read_episodes
from m3dt_agent.errors import DatasetError, UnknownTaskError
from m3dt_agent.hub import convert_data
from m3dt_agent.hub.convert_data import import_datasets


def test_which_tasks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("push", "reach"):
        write_mt160(tmp_path / "in", tasks.get(name), (3, 4, 5))
    (tmp_path / "in" / ".cache").mkdir()
    (tmp_path / "in" / "README.md").write_text("not a folder")
    (tmp_path / "in" / "pusher-v9").mkdir()
    with pytest.raises(DatasetError, match=r"holds names that are no task's: pusher-v9; name the tasks"):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    with pytest.raises(
        DatasetError, match=r"has no data of walker-run; it has: reach, push; names that are no task's: pusher-v9"
    ):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root", ["walker-run", "push"])
    assert not (tmp_path / "root").exists()
    with caplog.at_level("WARNING"):
        (summary,) = import_datasets("mt160", tmp_path / "in", tmp_path / "root", "push")
    assert "pusher-v9" in caplog.text
    assert summary.task.name == "push"
    (tmp_path / "in" / "pusher-v9").rmdir()
    caplog.clear()
    with caplog.at_level("WARNING"):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root", ["reach"])
    assert not caplog.text
    with pytest.raises(UnknownTaskError, match="mt160"):
        import_datasets("mt16", tmp_path / "in", tmp_path / "root")
    with pytest.raises(DatasetError, match="does not exist"):
        import_datasets("mt160", tmp_path / "nowhere", tmp_path / "root")
    for name in ("mt160", "tdmpc2", "prompt-dt"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DatasetError, match="holds no data of any task"):
            import_datasets(name, tmp_path / "empty", tmp_path / "root")


def test_interrupted_it_continues_task_by_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = tasks.resolve(["reach", "push", "walker-run"])
    written = {task.name: write_mt160(tmp_path / "in", task, (3, 4, 5)) for task in chosen}
    update = convert_data.tqdm.update
    seen = 0

    def interrupt(bar: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:  # the second episode of the second task
            raise KeyboardInterrupt
        update(bar)

    monkeypatch.setattr(convert_data.tqdm, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "root" / "m3dt").iterdir() if path.is_dir()] == ["reach"]
    assert [path.name for path in (tmp_path / "root").iterdir()] == ["m3dt"]
    again = import_datasets("mt160", tmp_path / "in", tmp_path / "root")
    assert [(summary.task.name, summary.kept) for summary in again] == [("reach", True), ("push", False), ("walker-run", False)]
    for summary in again:
        assert_holds(summary.path, written[summary.task.name])
    assert (again[0].episodes, again[0].steps) == (3, 12)
    assert again[0].mean_return == pytest.approx(np.mean([one["rewards"].sum() for one in written["reach"]]), rel=1e-5)


def test_another_dataset_of_that_name_is_refused_unless_overwritten(tmp_path: Path) -> None:
    task, root = tasks.get("push"), tmp_path / "root"
    write_mt160(tmp_path / "a", task, (3, 4, 5))
    new = write_mt160(tmp_path / "b", task, (6, 7, 8, 9))
    (old,) = import_datasets("mt160", tmp_path / "a", root)
    with pytest.raises(DatasetError, match=r'published-v0 exists and was made from .*"files": 3.*asked for was .*"files": 4'):
        import_datasets("mt160", tmp_path / "b", root)
    damaged = tmp_path / "b" / "push-v2" / "3.npz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100])
    with pytest.raises(DatasetError, match=r"3\.npz"):
        import_datasets("mt160", tmp_path / "b", root, overwrite=True)
    assert len(list(read_episodes(old.path))) == 3  # the old one stays until the new one is whole
    damaged.write_bytes(whole)
    (replaced,) = import_datasets("mt160", tmp_path / "b", root, overwrite=True)
    assert not replaced.kept
    assert_holds(replaced.path, new)
    assert [path.name for path in root.iterdir()] == ["m3dt"]
    (replaced.path / "data" / "main_data.hdf5").unlink()
    with pytest.raises(DatasetError, match=r"main_data\.hdf5 is missing; remove it, or pass overwrite=True"):
        import_datasets("mt160", tmp_path / "b", root)
    assert_holds(import_datasets("mt160", tmp_path / "b", root, overwrite=True)[0].path, new)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("push", "reach"):
        write_mt160(tmp_path / "in", tasks.get(name), (3, 4, 5), 2.0)
    arguments = ["data", "import", "mt160", str(tmp_path / "in"), "push", "--root", str(tmp_path / "root"), "--source", "mt160"]
    assert main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["task"], row["episodes"], row["steps"], row["kept"]) == ("push", 3, 12, False)
    assert Path(row["path"]) == tmp_path / "root" / "m3dt" / "push" / "mt160-v0"
    assert main(arguments) == 0
    assert "yes" in capsys.readouterr().out  # kept
    write_mt160(tmp_path / "other", tasks.get("push"), (3, 4, 5, 6))
    arguments[3] = str(tmp_path / "other")
    assert main(arguments) == 1
    assert "asked for was" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
