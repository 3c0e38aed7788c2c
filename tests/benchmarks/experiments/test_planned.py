"""The experiments: everything the paper has, the same procedure at every scale, and budgets that are what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.experiments import EXPERIMENTS, Arm, Experiment, budgets, cells, describe
from benchmarks.experiments.scales import (
    BANK_METHODS,
    BASELINES,
    LARGE,
    SCALES,
    UNTRAINED,
    WIDTHS,
    experts_for,
    published_settings,
)
from benchmarks.methods import METHODS, Work, base
from benchmarks.records import Cell
from benchmarks.settings import model_config
from m3dt_agent.config import ModelConfig
from m3dt_agent.errors import ConfigError, UnknownTaskError
from m3dt_agent.model import M3DT

SIZES = {
    *("embed_dim", "n_layers", "n_heads", "n_experts", "context_length", "prompt_length", "batch_size"),
    *("backbone_steps", "expert_steps", "router_steps", "warmup_steps", "harmo_swap_every"),
    *("learning_rate", "router_learning_rate", "grouping_batches", "grouping_runs", "demonstrations", "episodes"),
}
"""What scales may differ in."""
TOP_K = 4


def used_seeds(experiment: Experiment, scale: str) -> int:
    return len(experiment.seeds[: SCALES[scale].seeds])


def structure(name: str, scale: str) -> list[tuple[str, str, int, int, str]]:
    """What is compared with what, sizes apart: method, set by its place in the experiment, seeds, condition."""
    found = cells(name, scale)
    sets = list(dict.fromkeys(cell.task_set for cell in found))
    return [(c.method, str(sets.index(c.task_set)), c.task_set_seed, c.training_seed, c.condition) for c in found]


def test_the_papers_tables_and_figures_are_there() -> None:
    tables, figures = [f"table{n}" for n in (1, 2, 6, 7)], [f"figure{n}" for n in (2, 3, *range(5, 13))]
    assert {*tables, *figures, "single", "expert-sweep", "claim"} <= set(EXPERIMENTS)
    for name in (*tables, *figures):
        assert EXPERIMENTS[name].source.replace(" ", "").lower() == name
        assert EXPERIMENTS[name].note, "it says from where it is known"
    assert "not known" in describe("figure8")
    assert "m3dt-gradient against prompt-dt" in describe("claim")


def test_every_method_exists_and_is_in_one_experiment() -> None:
    used = {method for experiment in EXPERIMENTS.values() for method in experiment.methods}
    assert used == {*EXPERIMENTS["methods"].methods, *BANK_METHODS}
    assert used <= set(METHODS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "claim" else ()) for name in EXPERIMENTS]
)
def test_scales_differ_in_sizes_and_steps_only(name: str) -> None:
    paper = cells(name, "paper")
    for scale, rules in SCALES.items():
        found = cells(name, scale)
        seeds = EXPERIMENTS[name].seeds[: rules.seeds]
        kept = [cell for cell in paper if (cell.task_set_seed, cell.training_seed) in seeds]
        if name == "single":
            kept = [cell for cell in kept if cell.tasks in {other.tasks for other in found}]
        else:
            assert structure(name, scale) == [entry for entry in structure(name, "paper") if entry[2:4] in seeds]
        allowed = SIZES | ({"tasks_per_batch"} if scale in ("laptop", "box", "wheel") else set())
        if scale == "wheel":
            allowed |= {"dropout", *rules.added}
        for one, other in zip(kept, found, strict=True):
            assert rules.sizes or one.tasks == other.tasks
            assert other.settings.keys() - one.settings.keys() <= rules.added.keys()
            assert one.settings.keys() <= other.settings.keys()
            assert {key for key in other.settings if one.settings.get(key) != other.settings[key]} <= allowed


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_is_a_cell_of_its_own(name: str, scale: str) -> None:
    experiment, found = EXPERIMENTS[name], cells(name, scale)
    sets = SCALES[scale].single_tasks or 160 if name == "single" else len(experiment.task_sets)
    assert len(found) == len(experiment.arms) * sets * used_seeds(experiment, scale)
    for cell in found:
        assert (cell.experiment, cell.scale) == (name, scale)
        assert len(cell.tasks) <= (13 if scale == "smoke" else 160)
        if cell.method not in UNTRAINED:
            _check_trainable(cell)


def _check_trainable(cell: Cell) -> None:
    settings = cell.settings
    shape = {name: settings[name] for name in ("embed_dim", "n_layers", "n_heads", "context_length", "prompt_length")}
    ModelConfig(**shape, n_experts=0)
    assert settings["backbone_steps"] >= 100
    if cell.method in BASELINES:
        assert settings["expert_steps"] == settings["router_steps"] == 0
    else:
        assert TOP_K <= settings["n_experts"] <= len(cell.tasks)
        assert min(settings["expert_steps"], settings["router_steps"]) >= 20


def test_seeds_are_paired_as_published_or_crossed() -> None:
    assert EXPERIMENTS["table1"].seeds == ((0, 0), (1, 1), (2, 2))
    assert len(EXPERIMENTS["claim-across-sets"].seeds) == 9
    assert len({cell.training_seed for cell in cells("claim", "paper")}) == 5
    assert len({cell.tasks for cell in cells("claim", "paper")}) == 1
    assert len({cell.tasks for cell in cells("claim-across-sets", "small")}) == 3


def test_cells_that_experiments_share_are_the_same() -> None:
    ids = {name: {cell.id for cell in cells(name, "small")} for name in EXPERIMENTS}
    assert ids["table1"] == ids["table6"] == ids["table7"]
    assert ids["expert-sweep"] < ids["figure6"]
    assert ids["figure8"] < ids["table1"]
    assert ids["claim"] & ids["claim-budgets"]
    assert not ids["claim"] & ids["claim-expert-data"]


def test_experts_for_a_task_set() -> None:
    assert {size: experts_for(size) for size in (10, 80, 160)} == {10: 8, 80: 24, 160: 40}
    assert published_settings("m3dt-gradient", 160, {})["n_experts"] == 40
    assert published_settings("prompt-dt", 160, {})["n_experts"] == 0


def test_names_that_do_not_exist() -> None:
    with pytest.raises(UnknownTaskError, match="claim"):
        cells("claims", "smoke")
    with pytest.raises(UnknownTaskError, match="smoke"):
        cells("claim", "tiny")


def test_published_widths_have_the_published_parameters() -> None:
    published = (1_465_520, 5_290_288, 20_017_712, 77_784_112, 173_299_248)
    settings = published_settings("prompt-dt", 160, {})
    for width, count in zip(WIDTHS, published, strict=True):
        unused = width + (39 * width + 39) + (width + 1)  # tensors of the published model that nothing uses
        assert budgets.parameter_count(model_config(settings, embed_dim=width)) == count - unused
    largest = budgets.parameter_count(model_config(published_settings("m3dt-gradient", 160, {"n_experts": 48})))
    assert budgets.prompt_dt_for(largest, settings) == LARGE


@pytest.mark.parametrize("scale", SCALES)
def test_equal_parameters_windows_and_flop(scale: str) -> None:
    ours = next(cell.settings for cell in cells("claim", scale) if cell.method == "m3dt-gradient")
    flop_matched = next(cell.settings for cell in cells("claim", scale) if cell.method == "prompt-dt")
    published, windows_matched = (c.settings for c in cells("claim-budgets", scale)[:2])
    wanted = budgets.parameter_count(model_config(ours))
    width, heads = flop_matched["embed_dim"], flop_matched["n_heads"]
    distances = [
        abs(budgets.parameter_count(model_config(flop_matched, embed_dim=width + d)) - wanted) for d in (-heads, 0, heads)
    ]
    assert min(distances) == distances[1]
    assert width == published["embed_dim"] == windows_matched["embed_dim"]
    assert windows_matched["backbone_steps"] * windows_matched["batch_size"] == budgets.three_stage_windows(ours)
    per_step = budgets.step_flop(model_config(flop_matched), "backbone", flop_matched["batch_size"])
    assert abs(flop_matched["backbone_steps"] * per_step - budgets.three_stage_flop(ours)) <= per_step / 2


def test_the_wide_one_has_the_flop_too() -> None:
    found = {cell.method: cell.settings for cell in cells("claim", "smoke")}
    wide = found["prompt-dt-wide"]
    config = model_config(wide, n_experts=0, ffn_multiple=4 * (wide["n_experts"] + 1))
    per_step = budgets.step_flop(config, "backbone", wide["batch_size"])
    assert abs(wide["backbone_steps"] * per_step - budgets.three_stage_flop(found["m3dt-gradient"])) <= per_step / 2


def test_flop_are_those_that_methods_count(make_work: Callable[..., Work]) -> None:
    work = make_work("m3dt-gradient")
    config = work.model_config()
    model, sampler = M3DT(config), base.run_sampler(work, config, work.train_config("router"))
    stages: dict[str, tuple[Any, Any]] = {
        "backbone": (model.backbone_tensors(), "none"),
        "experts": (model.expert_tensors(), 0),
        "router": (model.router_tensors(), "mixture"),
    }
    for stage, (parameters, choice) in stages.items():
        counted = budgets.step_flop(config, stage, work.setting("batch_size"))
        assert counted == base.step_flop(model, sampler, parameters, choice), stage


def test_budgets_that_do_not_exist_are_refused() -> None:
    settings = published_settings("prompt-dt", 10, {})
    with pytest.raises(ConfigError, match="asked for were 10"):
        budgets.prompt_dt_for(10, settings)
    with pytest.raises(ConfigError, match="router"):
        budgets.step_flop(model_config(settings), "router", 16)


def test_an_experiment_of_ones_own() -> None:
    mine = Experiment("t", "s", (Arm("zero"), Arm("zero", {"episodes": 5})), ("sampled-40", "mt10"), None)
    assert mine.methods == ("zero",)
    assert not mine.published
