"""`m3dt push`, `m3dt pull`, `m3dt data push`, `m3dt data pull`: banks and datasets on the Hugging Face Hub.

A token is never an argument, because other users of the machine can see arguments. It comes from a file, or from the login
that `hf auth login` keeps, which is sent to huggingface.co only.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..tasks import TaskSpec
from .info import bank_table, describe_bank
from .shared.options import (
    DEFAULT_ROOT,
    AsJson,
    Root,
    SetSeed,
    Source,
    TaskNames,
    TaskSet,
    named_tasks,
    parse_experts,
    path_argument,
    path_option,
    with_options_of,
)
from .shared.output import emit, make_table, quiet_stdout, size

if TYPE_CHECKING:
    from ..scores import EpisodeResult

Repo = Annotated[str, path_argument(help="Repository on the Hub, namespace/name, or a folder, written ./like/this.")]
Origin = Annotated[
    str, path_argument(help="Repository on the Hub, namespace/name, a folder, written ./like/this, or builtin:NAME.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag (stage-backbone, stage-router, …) or sha; default: main.")]
TokenFile = Annotated[Path | None, path_option(help="File that holds the token; default: your login on huggingface.co.")]
Endpoint = Annotated[str | None, typer.Option(help="Address of the Hub; default: HF_ENDPOINT, or huggingface.co.")]
Private = Annotated[
    bool | None,
    typer.Option("--private/--public", help="For a repository that is created; default: as the account says."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there with other contents.")]


def push_command(
    bank: Annotated[str, path_argument(help="The bank: a folder, or builtin:NAME.")],
    repo: Repo,
    rows: Annotated[Path | None, path_option(help="File of `m3dt eval --rows`, for the scores on the card.")] = None,
    policy: Annotated[str | None, typer.Option(help="Policy whose rows are the bank's own, if several could be.")] = None,
    private: Private = None,
    overwrite: Overwrite = False,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Push what is new in a bank: one commit and one tag for each stage.

    If it is interrupted, run the same command again to continue.
    """
    from ..hub.banks import push_bank
    from ..scores import read_rows

    evaluated = read_rows(rows) if rows else []
    with quiet_stdout(), tempfile.TemporaryDirectory() as folder:
        pushed = push_bank(
            bank,
            repo,
            rows=evaluated,
            policy=policy,
            figure=draw_scores(evaluated, Path(folder, "scores.png"), bank),
            private=private,
            overwrite=overwrite,
            token=read_token(token_file),
            endpoint=endpoint,
        )
    document = {"repo": repo, **dataclasses.asdict(pushed)}
    cells = [("repository", repo), ("commit", pushed.sha or "a folder"), ("tag", pushed.tag), ("commits", pushed.commits)]
    cells.append(("files sent", ", ".join(pushed.files) or "none: it was all there"))
    emit(document, as_json=as_json, table=make_table("Pushed", ("", ""), cells, left=2))


def draw_scores(rows: Sequence[EpisodeResult], path: Path, bank: str) -> Path | None:
    """Draws the scores of the first four policies in the rows; None without rows or matplotlib.

    bank: says which domain a task is of.
    """
    from ..bank.builtin import open_bank
    from ..scores import summarize
    from ..scores.plots import save_score_figure

    if not rows or importlib.util.find_spec("matplotlib") is None:
        return None
    names = list(dict.fromkeys(row.policy for row in rows))[:4]
    summaries = [summarize([row for row in rows if row.policy == name]) for name in names]
    return save_score_figure(summaries, path, open_bank(bank, check="sizes").tasks)


def pull_command(
    repo: Origin,
    folder: Annotated[Path | None, path_argument(help="New folder for a copy; default: keep it in the cache.")] = None,
    revision: Revision = None,
    experts: Annotated[str | None, typer.Option(help="Pull only these experts, like 3,7.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Pull only the expert of this task; may be repeated.")] = None,
    token_file: TokenFile = None,
    endpoint: Endpoint = None,
    as_json: AsJson = False,
) -> None:
    """Pull a bank, or some of its experts, and verify every file.

    If it is interrupted, run the same command again to continue.
    """
    from ..hub.banks import pull_bank

    with quiet_stdout():
        pulled = pull_bank(
            repo,
            revision,
            experts=None if experts is None else parse_experts(experts),
            tasks=task,
            to=folder,
            token=read_token(token_file),
            endpoint=endpoint,
        )
    document = {"repo": repo, "sha": pulled.sha, **describe_bank(pulled.bank)}
    emit(document, as_json=as_json, table=bank_table(document))


@dataclass(frozen=True, slots=True)
class _Collection:
    """What `data push` and `data pull` are both told: which datasets, where they are here, and where on the Hub."""

    repo: Repo
    names: TaskNames = None
    task_set: TaskSet = None
    set_seed: SetSeed = 0
    root: Root = DEFAULT_ROOT
    source: Source = None
    overwrite: Overwrite = False
    token_file: TokenFile = None
    endpoint: Endpoint = None
    as_json: AsJson = False

    def tasks(self) -> tuple[TaskSpec, ...] | None:
        """The tasks that were named; None: all."""
        return named_tasks(self.names, self.task_set, self.set_seed) or None


@with_options_of(_Collection)
def data_push_command(asked: _Collection, private: Private = None) -> None:
    """Push the datasets of all tasks, or of those named, into one repository.

    If it is interrupted, run the same command again to continue.
    """
    from ..hub.datasets import push_datasets

    with quiet_stdout():
        pushed = push_datasets(
            asked.root,
            asked.repo,
            asked.tasks(),
            source=asked.source,
            private=private,
            overwrite=asked.overwrite,
            token=read_token(asked.token_file),
            endpoint=asked.endpoint,
        )
    document = {"repo": asked.repo, **dataclasses.asdict(pushed)}
    sent = (
        f"{len(pushed.datasets)} dataset(s) sent to {asked.repo}, {pushed.commits} commit(s), now at {pushed.sha or 'a folder'}"
    )
    emit(document, as_json=asked.as_json, table=make_table(sent, ("dataset",), ([name] for name in pushed.datasets)))


@with_options_of(_Collection)
def data_pull_command(asked: _Collection, revision: Revision = None) -> None:
    """Pull the datasets of all tasks, or of those named, into a Minari root.

    If it is interrupted, run the same command again to continue.
    """
    from ..hub.datasets import pull_datasets

    with quiet_stdout():
        pulled = pull_datasets(
            asked.repo,
            asked.root,
            asked.tasks(),
            source=asked.source,
            revision=revision,
            overwrite=asked.overwrite,
            token=read_token(asked.token_file),
            endpoint=asked.endpoint,
        )
    rows: list[dict[str, Any]] = [
        {"dataset": name, "path": str(path), "new": name in pulled.new, "bytes": _bytes(path)}
        for name, path in pulled.paths.items()
    ]
    cells = ([row["dataset"], "pulled" if row["new"] else "kept", size(row["bytes"])] for row in rows)
    table = make_table(f"{asked.repo} at {pulled.sha or 'a folder'}", ("dataset", "", "size"), cells, left=2)
    emit({"repo": asked.repo, "sha": pulled.sha, "datasets": rows}, as_json=asked.as_json, table=table)


def read_token(file: Path | None) -> str | None:
    """The token in `file`; None without a file.

    Raises:
        ConfigError: the file cannot be read, or does not hold exactly one token.
    """
    if file is None:
        return None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the token file {file} cannot be read: {type(error).__name__}") from None
    if not token or token.split() != [token]:
        raise ConfigError(f"the token file {file} must hold one token and nothing else")
    return token


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
