"""The page of a bank: scores from rows and card, the router's weights against the model itself, and text of strangers."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import HOSTILE, HOSTILE_NAME, ReadPage, harmless
from row_examples import row
from small_banks import new_bank

from m3dt_agent.agent import M3DTAgent
from m3dt_agent.bank import ExpertBank
from m3dt_agent.data.prompts import prompt_window
from m3dt_agent.errors import ConfigError, UnknownTaskError
from m3dt_agent.evaluation import router_usage
from m3dt_agent.hub.cards import model_card
from m3dt_agent.scores.rows import EpisodeResult, write_rows
from m3dt_agent.view.bank import bank_page, datasets_of
from m3dt_agent.view.bank_scores import scores_of_bank
from m3dt_agent.view.routing import router_weights


def rows_of(bank: ExpertBank, policy: str = "m3dt-mixture", change: float = 0.0) -> list[EpisodeResult]:
    returns = {"walker-run": (400.0, 600.0), "reach": (1.0, 2.0)}
    return [
        row(
            task,
            seed,
            value + change,
            policy=policy,
            bank_hash=bank.content_hash,
            success=seed == 0 if task == "reach" else None,
        )
        for task, values in returns.items()
        for seed, value in enumerate(values)
    ]


@pytest.fixture(scope="module")
def page(bank: ExpertBank, tmp_path_factory: pytest.TempPathFactory) -> ReadPage:
    others = [row("walker-run", seed, 800.0 + seed, policy=HOSTILE) for seed in range(3)]
    others += [row("reach", seed, success=True, policy="expert") for seed in range(3)]
    file = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", [*rows_of(bank), *others])
    return ReadPage(bank_page(bank, HOSTILE, [file], None, (), progress=False).html())


def test_scores_stand_beside_the_demonstrators_with_intervals(page: ReadPage) -> None:
    assert harmless(page)
    assert page.column("tasks", "m3dt-mixture") == {"reach": "50.0", "walker-run": "50.0"}
    assert page.column("tasks", "expert") == {"reach": "100.0", "walker-run": "-"}
    assert page.column("tasks", HOSTILE) == {"reach": "-", "walker-run": "80.1"}
    assert page.column("tasks", "95% interval") == {"reach": "9.5 … 90.5", "walker-run": "40.0 … 60.0"}
    assert page.column("tasks", "success") == {"reach": "50%", "walker-run": "-"}
    assert f"Bank {HOSTILE}" in page.text
    assert "10 evaluated episodes" in page.text


def test_the_heat_map_holds_the_routers_weights(page: ReadPage, bank: ExpertBank) -> None:
    agent = M3DTAgent.load(bank.path)
    figure = page.data["plots"]["experts"]
    heat, own = figure["data"]
    window = prompt_window([agent.prompts["walker-run"][0]], [agent.statistics["walker-run"]], agent.config)
    with torch.no_grad():
        expected = agent.model.router_weights(window, window)[0].mean(0).numpy()  # (L, E)
    place = heat["y"].index("walker-run")
    np.testing.assert_allclose(heat["z"][place], expected.mean(0), rtol=1e-3)
    blocks = [button["args"][0]["z"][0][place] for button in figure["layout"]["updatemenus"][0]["buttons"]]
    np.testing.assert_allclose(blocks[1:], expected, rtol=1e-3)
    np.testing.assert_allclose([bar["y"] for bar in page.data["panels"]["tasks"]["walker-run"]["weights"]], expected, rtol=1e-3)
    assert dict(zip(own["y"], own["x"], strict=True)) == {"walker-run": 1, "reach": 0}
    heaviest = page.column("tasks", "heaviest")["walker-run"]
    assert heaviest == str(int(expected.mean(0).argmax()))
    assert page.column("groups", "names") == {"0": "reach", "1": "walker-run"}


def test_the_weights_can_be_measured_on_datasets_of_some_of_the_tasks(bank: ExpertBank, root: Path, tmp_path: Path) -> None:
    data = datasets_of(bank, shutil.copytree(root, tmp_path / "root"), None)
    assert [task.name for task in data.tasks] == ["reach"]
    weights = router_weights(agent := M3DTAgent.load(bank.path), data)
    np.testing.assert_allclose(weights.by_task["reach"].mean(0), router_usage(agent, data)["reach"], rtol=1e-5)
    assert weights.by_task["reach"].shape == (2, 2)
    np.testing.assert_allclose(weights.by_task["reach"].sum(1), 1.0, rtol=1e-6)
    page = ReadPage(bank_page(bank, "b", [], data, (), progress=False).html())
    assert page.data["plots"]["experts"]["data"][0]["y"] == ["reach"]
    assert page.column("tasks", "heaviest")["walker-run"] == "-"
    assert "64 windows of each task's demonstrations" in page.text


def test_experts_that_carry_the_weight_are_counted(bank: ExpertBank) -> None:
    found = router_weights(M3DTAgent.load(bank.path), None)
    even = dataclasses.replace(found, by_task={"a": np.array([[0.995, 0.004, 0.001], [0.4, 0.3, 0.3]])})
    assert even.needed("a") == 2.0
    assert even.heaviest("a") == (0, pytest.approx(0.6975))


def test_without_rows_the_card_is_read_and_what_is_missing_is_said(bank: ExpertBank, tmp_path: Path) -> None:
    bare = bank.copy_to(tmp_path / "bare")
    nothing = scores_of_bank(bare, "bare", [])
    assert (nothing.own, set(nothing.policies)) == ("", {"expert"})
    assert "m3dt eval bare TASK… --rows rows.jsonl measures them" in nothing.missing[0]
    (bare.path / "README.md").write_text(model_card(bare, "me/bare", rows=rows_of(bare)))
    carded = scores_of_bank(bare, "bare", [])
    assert (carded.own, carded.of("m3dt-mixture", "reach")) == ("m3dt-mixture", carded.policies["m3dt-mixture"]["reach"])
    measured = scores_of_bank(bare, "bare", [write_rows(tmp_path / "rows.jsonl", rows_of(bare))])
    for task in ("reach", "walker-run"):
        one, other = carded.of("m3dt-mixture", task), measured.of("m3dt-mixture", task)
        assert one is not None
        assert other is not None
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), abs=0.051)
    (bare.path / "README.md").write_text(model_card(bare, "me/bare", rows=rows_of(bare)).replace(bare.content_hash, "0" * 64))
    assert scores_of_bank(bare, "bare", []).own == ""


def test_rows_beside_the_bank_are_found_and_those_of_other_banks_are_not(bank: ExpertBank, tmp_path: Path) -> None:
    bare = bank.copy_to(tmp_path / "bare")
    write_rows(bare.path / "rows.jsonl", rows_of(bare))
    foreign = [dataclasses.replace(one, bank_hash="f" * 64) for one in rows_of(bare, change=9.0)]
    write_rows(bare.path / "others.jsonl", foreign)
    (bare.path / "no-rows.jsonl").write_text("{}\n")
    found = scores_of_bank(bare, "bare", [])
    assert found.origin.startswith("4 evaluated episodes, those in rows.jsonl beside bank.json among them")
    with pytest.raises(ConfigError, match="these rows are of another bank, ffffffffffff…"):
        scores_of_bank(bare, "bare", [bare.path / "others.jsonl"])


def test_a_bank_that_is_not_finished_says_what_it_lacks(tmp_path: Path) -> None:
    page = ReadPage(bank_page(new_bank(tmp_path / "new"), "new", [], None, (), progress=False).html())
    assert "Stage backbone is not trained, so there is no router to show" in page.text
    assert [line[0] for line in page.tables["tasks"][1:]] == ["reach", "walker-run"]
    assert "experts" not in page.data["plots"]


def test_clips_of_tasks_that_the_bank_lacks_are_an_error(bank: ExpertBank) -> None:
    with pytest.raises(UnknownTaskError, match="clips of hammer: bank b has no such task"):
        bank_page(bank, "b", [], None, ("hammer",), progress=False)


def test_a_card_of_a_stranger_stays_text(bank: ExpertBank, tmp_path: Path) -> None:
    bare = bank.copy_to(tmp_path / HOSTILE_NAME)
    others = [row("walker-run", seed, 800.0, policy=HOSTILE) for seed in range(2)]
    (bare.path / "README.md").write_text(model_card(bare, "me/bare", rows=[*rows_of(bare), *others]))
    page = ReadPage(bank_page(bare, str(bare.path), [], None, (), progress=False).html())
    assert harmless(page)
    assert page.column("tasks", HOSTILE) == {"reach": "-", "walker-run": "80.0"}
