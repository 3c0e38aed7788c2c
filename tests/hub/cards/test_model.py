"""Cards: parsed by the Hub's own client, validated by the loopback Hub, rendered, and their snippets run."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import re
import shlex
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from contracts import random_bank, random_datasets
from hub_server import Hub
from huggingface_hub import DatasetCard, ModelCard
from markdown_it import MarkdownIt

from m3dt_agent import tasks
from m3dt_agent.bank import ExpertBank
from m3dt_agent.bank.expert_bank import expert_file
from m3dt_agent.bank.manifest import Manifest
from m3dt_agent.bank.tensor_files import FileRecord
from m3dt_agent.cli import main
from m3dt_agent.config import STAGES, DataConfig, ModelConfig, train_preset
from m3dt_agent.data.episodes import dataset_id
from m3dt_agent.data.task_datasets import TaskDatasets
from m3dt_agent.errors import BankError, ConfigError, StageError, UnknownTaskError
from m3dt_agent.hub.cards import MARK, DatasetRow, dataset_card, model_card
from m3dt_agent.hub.cards.datasets import size_category
from m3dt_agent.scores import EpisodeResult, summarize, wilson_interval
from m3dt_agent.training.stage_inputs import data_fingerprint

REPO = "org/m3dt-name"
TASKS = ("cheetah-vel-22", "drawer-open", "walker-run")
STATES = ("backbone", "one of three experts", "experts", "router")
HOSTILE = (
    "x|y\n\n# h\n[a](https://e.example) ![i](https://e.example/i) "
    "<img src=x onerror=a()> `c` **b** _i_ \\| ~~~\n```\n&lt; \u202e$x$"
)
SNIPPET = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Page(HTMLParser):
    """A rendered card: every tag with its attributes, and the text of every table's cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, Any]] = []
        self.tables: list[list[list[str]]] = []
        self._in_cell = False
        self.feed(MarkdownIt("commonmark").enable("table").render(ModelCard(text).text))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, attrs))
        self._in_cell |= tag in ("td", "th")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.tables[-1][-1][-1] += data

    def table(self, *header: str) -> list[list[str]]:
        """The rows of the table that begins with these columns."""
        [found] = [rows for rows in self.tables if rows[0][: len(header)] == list(header)]
        return found[1:]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Minari root with datasets of `TASKS`."""
    root = tmp_path_factory.mktemp("cards") / "datasets"
    random_datasets(root, TASKS)
    return root


@pytest.fixture(scope="module")
def data(root: Path) -> TaskDatasets:
    return TaskDatasets.open(root, TASKS)


def bank_in(state: str, path: Path, data: TaskDatasets) -> ExpertBank:
    """A bank that training could have left in one of `STATES`."""
    bank = random_bank(path, data, ModelConfig.preset("tiny"))
    reached = STATES.index(state)
    kept = {expert_file(e) for e in range((0, 1, 3, 3)[reached])} | ({"router.safetensors"} if reached == 3 else set())
    manifest = bank.manifest
    stages = {
        stage: {
            "config": dataclasses.asdict(train_preset("tiny", stage, steps=2_000 if stage == "backbone" else 2, threads=1)),
            "threads": 1,
            "data": data_fingerprint(data),
        }
        for stage in STAGES[: (1, 2, 2, 3)[reached]]
    }
    files = {
        name: record for name, record in manifest.files.items() if name in kept or not name.startswith(("experts/", "router"))
    }
    groups = (
        {"groups": {name: e for e, name in enumerate(TASKS)}, "grouping": {"grouping": "random", "seed": 0}} if reached else {}
    )
    for name in set(manifest.files) - set(files):
        (path / name).unlink()
    (path / "bank.json").write_text(dataclasses.replace(manifest, files=files, stages=stages, **groups).to_json())
    return ExpertBank.open(path)


@pytest.fixture
def bank(tmp_path: Path, data: TaskDatasets) -> ExpertBank:
    return bank_in("router", tmp_path / "bank", data)


def rows_of(bank_hash: str, policy: str = "m3dt-mixture", names: Sequence[str] = TASKS, **changes: Any) -> list[EpisodeResult]:
    """Ten episodes of each task: drawer-open succeeds in nine, walker-run scores 40.5 to 49.5, cheetah-vel-22 100."""
    rows = []
    for name in names:
        succeeds = tasks.get(name).domain == "metaworld"
        for k in range(10):
            fields: dict[str, Any] = {
                "episode_return": {"drawer-open": 4000.0, "walker-run": 405.0 + 10 * k}.get(name, -30.0),
                "success": k > 0 if succeeds else None,
                "reward_version": "v2" if succeeds else None,
                "versions": {"m3dt-agent": "0.1.0", "mujoco": "3.3.0"},
            }
            row = EpisodeResult(
                task=name, seed=10_000 + k, length=200, policy=policy, bank_hash=bank_hash, stop_on_success=False, **fields
            )
            rows.append(dataclasses.replace(row, **changes))
    return rows


def run_snippets(text: str, repo: Path) -> list[str]:
    """Runs every snippet of a card in the working folder, with `repo` for the repository; the languages that ran."""
    found = SNIPPET.findall(text.replace(REPO, str(repo)))
    for language, code in found:
        if language == "python":
            exec(compile(code, "card", "exec"), {"__name__": "card"})
            continue
        for line in code.splitlines():
            program, *arguments = shlex.split(line.removeprefix("$ "))
            assert program == "m3dt"
            assert main(arguments) == 0, line
    return [language for language, _ in found]


# Model cards


@pytest.mark.parametrize("state", STATES)
def test_a_card_of_every_state_is_valid_and_says_what_is_done(
    state: str, tmp_path: Path, data: TaskDatasets, lfs_hub: Hub
) -> None:
    bank = bank_in(state, tmp_path / "bank", data)
    for rows in ((), rows_of(bank.content_hash, "m3dt-backbone")):
        text = model_card(bank, REPO, rows=rows)
        card = ModelCard(text)
        card.validate()
        assert card.data.library_name == "m3dt-agent"
        assert card.data.pipeline_tag == "reinforcement-learning"
        assert card.data.license == "apache-2.0"
        assert {"offline-reinforcement-learning", "mixture-of-experts", "metaworld", "cheetah-vel"} <= set(card.data.tags)
        assert ("model-index" in text) == bool(rows)
        assert MARK in text
    statuses = [row[:2] for row in Page(text).table("stage", "status")]
    experts = "done" if state in ("experts", "router") else "not done"
    router = "done" if state == "router" else "not done"
    assert statuses == [["backbone", "done"], ["experts", experts], ["router", router]]
    assert Page(text).table("stage", "status")[0][2:] == ["2,000", data_fingerprint(data)[:12], "1", "float32"]
    assert str(tmp_path) not in text


@pytest.mark.parametrize("state", [pytest.param("backbone", marks=pytest.mark.slow), *STATES[1:]])  # it trains all experts
def test_the_snippets_of_a_model_card_run(
    state: str, tmp_path: Path, root: Path, data: TaskDatasets, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)
    Path("datasets").symlink_to(root)
    published = bank_in(state, tmp_path / "published", data)
    ran = run_snippets(model_card(published, REPO), published.path)
    assert ran == (["python"] if state == "router" else ["python", "console"])
    assert re.match(r"-\d+\.\d+\n", capsys.readouterr().out)  # the return of an episode
    if state != "router":
        trained = ExpertBank.open("bank")
        assert trained.status("router" if state == "experts" else "experts") == "done"
        unchanged = published.manifest.files.items()
        assert unchanged <= trained.manifest.files.items()


def test_a_single_expert_changes_no_card(tmp_path: Path, data: TaskDatasets) -> None:
    bank = bank_in("one of three experts", tmp_path / "bank", data)
    tensors = bank.read(expert_file(0))
    others = {name: record for name, record in bank.manifest.files.items() if name != expert_file(0)}
    none_yet = dataclasses.replace(bank.manifest, files=others, stages={"backbone": bank.manifest.stages["backbone"]})
    unfinished = [model_card(ExpertBank(bank.path, none_yet), REPO), model_card(bank, REPO)]
    for e in (0, 1):  # another expert 0, then expert 1 as well
        bank.commit({expert_file(e): {name: tensor + 1.0 for name, tensor in tensors.items()}})
        unfinished.append(model_card(bank, REPO))
    assert len(set(unfinished)) == 1
    bank.commit({expert_file(2): tensors})
    complete = model_card(bank, REPO)
    assert complete not in unfinished
    bank.commit({expert_file(2): {name: tensor + 1.0 for name, tensor in tensors.items()}})
    assert model_card(bank, REPO) == complete


def test_the_model_index_holds_every_score_and_comes_back(bank: ExpertBank) -> None:
    rows = [*rows_of("", "random"), *rows_of(bank.content_hash)]
    text = model_card(bank, REPO, rows=rows)
    card = ModelCard(text)
    assert card.data.model_name == REPO
    found = {(result.dataset_type, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert found == {
        ("M3DT/cheetah-vel-22-v0", "normalized_score"): 100.0,
        ("M3DT/drawer-open-v0", "normalized_score"): 90.0,
        ("M3DT/drawer-open-v0", "success_rate"): 0.9,
        ("M3DT/walker-run-v0", "normalized_score"): 45.0,
    }
    assert [result.dataset_name for result in card.data.eval_results] == [
        "cheetah-vel-22",
        "drawer-open",
        "drawer-open",
        "walker-run",
    ]
    assert card.content == text
    assert ModelCard(str(card)).data.eval_results == card.data.eval_results


def test_scores_with_intervals_beside_those_of_others(bank: ExpertBank) -> None:
    one_task = rows_of("", "random", TASKS[:1], episode_return=-65.0)
    rows = [*rows_of("", "zero"), *one_task, *rows_of(bank.content_hash)]
    page = Page(model_card(bank, REPO, rows=rows, figure="figures/scores.png"))
    table = {row[0]: row for row in page.table("task", "domain")}
    summary = summarize(rows_of(bank.content_hash))
    low, high = summary.tasks["walker-run"].score_interval
    assert table["walker-run"][1:] == ["dmcontrol", "10", "450.0", "45.0", f"{low:.1f} … {high:.1f}", "-", "45.0", "-", "43.8"]
    low, high = wilson_interval(9, 10)
    assert table["drawer-open"][1:] == [
        "metaworld",
        "10",
        "4,000.0",
        "90.0",
        f"{100 * low:.1f} … {100 * high:.1f}",
        "90%",
        "90.0",
        "-",
        f"{tasks.get('drawer-open').published_score:.1f}",
    ]
    published = [tasks.get(name).published_score for name in TASKS]
    assert table["cheetah-vel-22"][-3:] == ["100.0", "50.0", f"{published[0]:.1f}"]
    assert table["mean"][4:] == [
        "78.3",
        "{:.1f} … {:.1f}".format(*summary.mean_interval),
        "90%",
        "78.3",
        "-",
        f"{sum(published) / 3:.1f}",
    ]
    assert table["IQM"][4:] == ["78.3", "{:.1f} … {:.1f}".format(*summary.iqm_interval), "", "78.3", "-", ""]
    policies = {row[0]: row[1:5] for row in page.table("policy", "acts with")}
    assert policies == {
        "m3dt-mixture": [f"this bank, {bank.content_hash[:12]}", "3", "30", "10000 … 10009"],
        "zero": ["no bank", "3", "30", "10000 … 10009"],
        "random": ["no bank", "1", "10", "10000 … 10009"],
    }
    assert ("img", [("src", "figures/scores.png"), ("alt", "Normalized score per task")]) in page.tags


def test_others_are_compared_on_the_tasks_of_the_bank(bank: ExpertBank) -> None:
    rows = [*rows_of(bank.content_hash, names=TASKS[:1]), *rows_of("", "zero", TASKS), *rows_of("", "random", TASKS[1:])]
    page = Page(model_card(bank, REPO, rows=rows))
    assert [row[0] for row in page.table("policy", "acts with")] == ["m3dt-mixture", "zero"]
    assert {row[0]: row[-2] for row in page.table("task", "domain")} == {
        "cheetah-vel-22": "100.0",
        "mean": "100.0",
        "IQM": "100.0",
    }


def test_tasks_under_half_of_the_behavior_policy_are_named(bank: ExpertBank) -> None:
    behavior = [*rows_of("", "expert", TASKS[1:2]), *rows_of("", "expert", TASKS[2:], episode_return=950.0)]
    text = model_card(bank, REPO, rows=[*rows_of(bank.content_hash), *behavior])
    assert "Under half of the behavior policy: walker-run (45.0 of 95.0)." in text
    equal = model_card(bank, REPO, rows=[*rows_of(bank.content_hash), *rows_of("", "expert")])
    assert "Under half of the behavior policy: none of these tasks." in equal
    assert "Under half" not in model_card(bank, REPO, rows=rows_of(bank.content_hash))


def test_a_card_of_a_bank_in_the_package_and_notes_after_its_scores(bank: ExpertBank) -> None:
    text = model_card(bank, "builtin:mt160", rows=rows_of(bank.content_hash), notes=["### Made with", "patience"])
    assert "# builtin:mt160" in text
    assert 'from_pretrained("builtin:mt160")' in text
    assert text.index("Where it is weak") < text.index("### Made with\n\npatience") < text.index("Training configuration")
    for wrong in ("builtin:a/b", "builtin:`a`", "mt160"):
        with pytest.raises(ConfigError, match="namespace/name"):
            model_card(bank, wrong)


def test_weak_tasks_hashes_and_versions_are_named(bank: ExpertBank) -> None:
    text = model_card(bank, REPO, rows=rows_of(bank.content_hash))
    assert "Below 50: walker-run (45.0)." in text
    assert text.count(f"`{bank.content_hash}`") == 2
    assert "Run with m3dt-agent 0.1.0, mujoco 3.3.0. Meta-World episodes run their full length; reward function: v2." in text
    good = model_card(bank, REPO, rows=rows_of(bank.content_hash, names=TASKS[:2], stop_on_success=True))
    assert "None of these tasks scores below 50." in good
    assert "Of 2 of the bank's 3 tasks" in good
    assert "Meta-World episodes end at success" in good


def test_rows_that_are_not_of_this_bank_are_refused(bank: ExpertBank) -> None:
    foreign = "f" * 64
    with pytest.raises(ConfigError, match=f"{foreign}.*{bank.content_hash}"):
        model_card(bank, REPO, rows=[*rows_of(bank.content_hash), *rows_of(foreign)])
    with pytest.raises(ConfigError, match=f"no row is of this bank, {bank.content_hash}"):
        model_card(bank, REPO, rows=rows_of(""))
    with pytest.raises(ConfigError, match="policy 'm3dt-mixture' has rows with this bank and rows without"):
        model_card(bank, REPO, rows=[*rows_of(bank.content_hash), *rows_of("")])
    with pytest.raises(ConfigError, match="more than once"):
        model_card(bank, REPO, rows=rows_of(bank.content_hash) * 2)


def test_of_several_policies_with_the_bank_one_is_its_own(bank: ExpertBank) -> None:
    ours = bank.content_hash
    two = [*rows_of(ours, "m3dt-backbone", episode_return=0.0), *rows_of(ours)]
    by_default = ModelCard(model_card(bank, REPO, rows=two)).data.eval_results
    assert by_default == ModelCard(model_card(bank, REPO, rows=rows_of(ours))).data.eval_results
    chosen = ModelCard(model_card(bank, REPO, rows=two, policy="m3dt-backbone")).data.eval_results
    assert [result.metric_value for result in chosen] == [100.0, 90.0, 0.9, 0.0]
    with pytest.raises(ConfigError, match="'a', 'b'; got policy=None"):
        model_card(bank, REPO, rows=[*rows_of(ours, "a"), *rows_of(ours, "b")])
    with pytest.raises(ConfigError, match="'m3dt-mixture'; got policy='zero'"):
        model_card(bank, REPO, rows=[*rows_of(ours), *rows_of("", "zero")], policy="zero")


def test_the_policy_of_a_concentrated_router_is_the_banks_own(bank: ExpertBank) -> None:
    stages = {**bank.manifest.stages, "router": {"config": {"concentrate": 0.1}}}
    bank = ExpertBank(bank.path, dataclasses.replace(bank.manifest, stages=stages))
    rows = [*rows_of(bank.content_hash), *rows_of(bank.content_hash, "m3dt-routed", TASKS[:1])]
    assert Page(model_card(bank, REPO, rows=rows)).table("policy", "acts with")[0][0] == "m3dt-routed"


@pytest.mark.parametrize("state", ["backbone", "one of three experts"])
def test_tasks_are_listed_by_expert_once_they_are_grouped(state: str, tmp_path: Path, data: TaskDatasets) -> None:
    page = Page(model_card(bank_in(state, tmp_path / "bank", data), REPO))
    if state == "backbone":
        assert ["metaworld", "1", "drawer-open"] in page.table("domain", "tasks")
    else:
        assert page.table("expert", "tasks") == [[str(e), "1", name] for e, name in enumerate(TASKS)]


def test_tasks_that_were_only_shown_are_named(tmp_path: Path, data: TaskDatasets, bank: ExpertBank) -> None:
    few = random_datasets(tmp_path / "few", ["reach", "walker-walk"])
    for made in (bank, bank_in("backbone", tmp_path / "ungrouped", data)):
        card = model_card(made.with_tasks(tmp_path / f"shown-{made.path.name}", few), REPO)
        assert "Nothing was trained on these tasks; the bank has" in card
        assert "from demonstrations: reach, walker-walk." in card
        assert "Nothing was trained" not in model_card(made, REPO)


def test_parameters_are_counted(bank: ExpertBank) -> None:
    count = dict(page_row[:2] for page_row in Page(model_card(bank, REPO)).table("", "when all stages are done"))
    held = {name: sum(t.numel() for t in bank.read(f"{name}.safetensors").values()) for name in ("backbone", "router")}
    each = sum(t.numel() for t in bank.read(expert_file(0)).values())
    assert count["parameters of the backbone"] == f"{held['backbone']:,}"
    assert count["parameters of the router"] == f"{held['router']:,}"
    assert count["parameters of the experts"] == f"{3 * each:,} ({each:,} each)"
    assert count["parameters, all"] == f"{sum(held.values()) + 3 * each:,}"


@pytest.mark.parametrize("left_out", [False, True])
def test_what_a_model_lacks_is_said(tmp_path: Path, left_out: bool) -> None:
    parts = dict.fromkeys(("use_returns", "use_timesteps", "use_embed_norm"), not left_out)
    config = dataclasses.replace(ModelConfig.preset("tiny"), **parts)
    made = random_bank(tmp_path / "bank", random_datasets(tmp_path / "data", ["reach"]), config)
    said = dict(row[:2] for row in Page(model_card(made, REPO)).table("", "when all stages are done"))
    wanted = {"it does not see": "returns or timesteps", "embedded tokens": "not normalized"}
    assert {name: said.get(name) for name in wanted} == (wanted if left_out else dict.fromkeys(wanted))


def published_manifest() -> Manifest:
    """Of a bank of the published shape, 160 tasks and 48 experts, whose training nobody recorded."""
    names = tuple(task.name for task in tasks.TASKS)
    listed = ("backbone", "router", "statistics", "prompts", *(f"experts/{e:03d}" for e in range(48)))
    files = {f"{name}.safetensors": FileRecord("0" * 64, 1) for name in listed}
    groups = {name: i % 48 for i, name in enumerate(names)}
    return Manifest(ModelConfig.preset("paper"), DataConfig(), names, groups, files=files)


def test_a_bank_of_160_tasks_without_records() -> None:
    bank = ExpertBank(Path("nowhere"), published_manifest())  # a card reads no other file than bank.json
    page = Page(model_card(bank, REPO, rows=rows_of(bank.content_hash, names=[task.name for task in tasks.TASKS])))
    assert len(page.table("task", "domain")) == 160 + 2
    assert len(page.table("expert", "tasks")) == 48
    assert page.table("stage", "status")[2] == ["router", "done", "-", "-", "-", "-"]
    # the published model's 174,124,624, less the tensors that ours leaves out: 256, 39 · 257 and 257
    assert ["parameters, all", "174,114,088"] in page.table("", "when all stages are done")


def test_a_bank_that_never_has_experts(tmp_path: Path, data: TaskDatasets) -> None:
    bank = random_bank(tmp_path / "bank", data, ModelConfig.preset("tiny", n_experts=0), experts=False)
    text = model_card(bank, REPO)
    assert [row[:2] for row in Page(text).table("stage", "status")] == [["backbone", "done"]]
    assert "train it further" not in text


def test_settings_are_collapsed_and_complete(bank: ExpertBank) -> None:
    page = Page(model_card(bank, REPO))
    settings = {row[0]: row[1:] for row in page.table("training")}
    assert set(settings) == {f.name for stage in STAGES for f in dataclasses.fields(train_preset("tiny", stage))}
    assert settings["learning_rate"] == ["0.001"] * 3
    assert settings["grouping_batches"] == ["-", "10", "-"]
    assert ["std_floor", "0.001"] in page.table("data")
    assert ["grouping", "random"] in page.table("grouping")
    order = [tag for tag, _ in page.tags]
    assert order.index("details") < order.index("summary") < len(order) - order[::-1].index("table")


def test_what_files_say_is_text_and_never_markup(bank: ExpertBank) -> None:
    def printable(text: str) -> str:
        return "".join(character for character in text if character.isprintable())

    def page(text: str) -> Page:
        stage = {"config": {"steps": text, text: text, "precision": text}, "threads": text, "data": text}
        manifest = dataclasses.replace(bank.manifest, stages={"backbone": stage}, grouping={"grouping": text, text: text})
        changed = ExpertBank(bank.path, manifest)
        text = printable(text)  # all that rows may hold
        own = rows_of(changed.content_hash, text, versions={text: text})
        own = [dataclasses.replace(row, reward_version=row.reward_version and text) for row in own]
        return Page(model_card(changed, REPO, rows=[*own, *rows_of("", text + "2")]))

    harmless, hostile = page("plain"), page(HOSTILE)
    assert hostile.tags == harmless.tags
    shown = " ".join(HOSTILE.replace("\u202e", " ").split())
    assert hostile.table("policy", "acts with")[0][0] == " ".join(printable(HOSTILE).split())
    assert hostile.table("training")[1] == [shown, shown, "-", "-"]


@pytest.mark.parametrize("repo_id", ["name", "/abs/path", "../up", "a/b/c", "org/na me", 'org/x")\n', "org/x|y", ""])
def test_repository_ids_that_cannot_be_are_refused(repo_id: str, bank: ExpertBank) -> None:
    with pytest.raises(ConfigError, match="a card is for a repository of the Hub, 'namespace/name'"):
        model_card(bank, repo_id)
    with pytest.raises(ConfigError, match="a card is for a repository of the Hub, 'namespace/name'"):
        dataset_card(repo_id, [row()])


@pytest.mark.parametrize("figure", ["/abs.png", "../up.png", "https://e.example/i.png", "a b.png", "a.png)", "a.png\n", ""])
def test_figures_outside_the_repository_are_refused(figure: str, bank: ExpertBank) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"such as 'scores.png'; got {figure!r}")):
        model_card(bank, REPO, figure=figure)


def test_what_else_a_model_card_refuses(tmp_path: Path, bank: ExpertBank, data: TaskDatasets) -> None:
    with pytest.raises(ConfigError, match="or 'mit'; got 'my own'"):
        model_card(bank, REPO, license="my own")
    empty = dataclasses.replace(bank.manifest, files={})
    with pytest.raises(StageError, match="without a backbone"):
        model_card(ExpertBank(bank.path, empty), REPO)
    for record in ({"config": 3}, [1]):
        broken = dataclasses.replace(bank.manifest, stages={"experts": record})  # type: ignore[dict-item]
        with pytest.raises(BankError, match="must hold the settings of stage 'experts'"):
            model_card(ExpertBank(bank.path, broken), REPO)
    broken = dataclasses.replace(bank.manifest, grouping="random")  # type: ignore[arg-type]
    with pytest.raises(BankError, match="must hold the settings of the grouping; it holds 'random'"):
        model_card(ExpertBank(bank.path, broken), REPO)


# Dataset cards


def row(task: str = "walker-run", source: str = "expert", steps: int = 500, **changes: Any) -> DatasetRow:
    fields: dict[str, Any] = {"episodes": 1, "bytes": 2_000_000, "mean_return": 1234.5, "mean_score": 12.3, "sha256": "ab" * 32}
    return DatasetRow(f"m3dt/{task}/{source}-v0", task, source, steps=steps, **(fields | changes))


def rows_in(root: Path, data: TaskDatasets) -> list[DatasetRow]:
    """The datasets of `root` as a push would describe them."""
    found = []
    for task, packed in zip(data.tasks, data.packed, strict=True):
        name = dataset_id(task, "random")
        content = (root / name / "data" / "main_data.hdf5").read_bytes()
        sha256, mean = hashlib.sha256(content).hexdigest(), float(packed.returns.mean())
        found.append(
            DatasetRow(name, task.name, "random", len(packed.returns), len(packed.steps), len(content), mean, None, sha256)
        )
    return found


def test_a_dataset_card_is_valid_and_counts(lfs_hub: Hub) -> None:
    rows = [
        row(),
        row("walker-run", "novice-1", 1_500, episodes=3),
        row("drawer-open", mean_score=None, bytes=3_000_000_000),
        row("ant-dir-3"),
    ]
    text = dataset_card(REPO, rows, license="mit", figure="returns.png")
    card = DatasetCard(text)
    card.validate()
    assert (card.data.license, card.data.pretty_name) == ("mit", REPO)
    assert (card.data.task_categories, card.data.size_categories) == (["reinforcement-learning"], ["1K<n<10K"])
    assert {"metaworld", "dmcontrol", "ant-dir", "minari"} <= set(card.data.tags)
    assert "cheetah-vel" not in card.data.tags
    assert card.content == text
    assert MARK in text
    page = Page(text)
    assert page.table("domain", "tasks") == [
        ["metaworld", "1", "1", "1", "500", "3.0 GB"],
        ["dmcontrol", "1", "2", "4", "2,000", "4.0 MB"],
        ["ant-dir", "1", "1", "1", "500", "2.0 MB"],
        ["all", "3", "4", "6", "3,000", "3.0 GB"],
    ]
    listed = page.table("task", "source")
    assert listed[1] == ["walker-run", "novice-1", "3", "1,500", "1,234.5", "12.3", "2.0 MB", "ab" * 6]
    assert listed[2][5] == "-"
    assert [dict(attributes)["src"] for tag, attributes in page.tags if tag == "img"] == ["returns.png"]
    assert "recover_environment()" in text


def test_the_snippets_of_a_dataset_card_run(
    tmp_path: Path, root: Path, data: TaskDatasets, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", "")  # so that what the snippet sets is taken back
    monkeypatch.chdir(tmp_path)
    assert run_snippets(dataset_card(REPO, rows_in(root, data)), root) == ["console", "python", "python"]
    assert capsys.readouterr().out.endswith("4 48\n")
    assert (tmp_path / "datasets" / dataset_id(data.tasks[0], "random")).is_dir()


def test_what_a_dataset_is_called_is_text_and_never_markup() -> None:
    harmless, hostile = (dataset_card(REPO, [row(source=source, sha256=source)]) for source in ("plain", HOSTILE))
    assert Page(hostile).tags == Page(harmless).tags
    assert Page(hostile).table("task", "source")[0][1] == " ".join(HOSTILE.replace("\u202e", " ").split())
    languages = [language for language, _ in SNIPPET.findall(hostile)]
    assert languages == ["console", "python", "python"]
    minari = ast.parse(SNIPPET.findall(hostile)[1][1])
    strings = [node.value for node in ast.walk(minari) if isinstance(node, ast.Constant)]
    assert f"m3dt/walker-run/{HOSTILE}-v0" in strings


def test_what_a_dataset_card_refuses() -> None:
    with pytest.raises(ConfigError, match="at least one dataset"):
        dataset_card(REPO, [])
    with pytest.raises(UnknownTaskError, match="walker-runs"):
        dataset_card(REPO, [row("walker-runs")])


@pytest.mark.parametrize(
    ("n", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1_000, "1K<n<10K"), (80_000_000, "10M<n<100M"), (10**11, "100B<n<1T"), (10**13, "n>1T")],
)
def test_sizes_are_the_hubs(n: int, category: str) -> None:
    assert size_category(n) == category
