"""Our own experiments: controls that the paper lacks, the bank that the package ships, and a comparison of all methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .arms import Arm, Experiment, arms
from .scales import BANK_METHODS, BASELINES, M3DT_METHODS, UNTRAINED, WIDTHS

_TO_BEAT = ("m3dt-gradient", "prompt-dt")
_MATCHED = Arm("prompt-dt", equal_parameters=True, budget="equal-flop")
_CLAIM = (_MATCHED, *arms(("m3dt-gradient", "m3dt-random", "m3dt-all-tasks")))

_DATA = {"stop_after_success": 1, "slots": 50, "precision": "bfloat16"}
_FIRST_BANK = {
    **_DATA,
    "backbone_steps": 160_000,
    "expert_steps": 10_000,
    "router_steps": 20_000,
    "cooldown": 0.2,
    "domain_weights": {"dmcontrol": 3, "metaworld": 2},
    "grouping": "random",
    "guide": 0.1,
    "skip_below": 0.05,
    "storage": "bfloat16",
    "acting": "bfloat16",
}
"""The settings of the first `builtin:mt160`, in the paper's numbers; results/2026-11-29-pretrained has its rows."""

_EPISODES = {"stop_after_success": 1, "slots": 50}
_BANK = {
    **_EPISODES,
    "domain_weights": {"dmcontrol": 3, "metaworld": 2},
    "domain_experts": {"ant-dir": 1, "cheetah-vel": 1, "dmcontrol": 17},
    "grouping": "random",
    "skip_below": 0.03,
    "storage": "bfloat16",
    "acting": "float32",
}
"""The settings of `builtin:mt160`, besides those of its scale. The reasons for them are in `pretrained.md`."""


def _control(title: str, arms_: tuple[Arm, ...], note: str = "", **changes: Any) -> Experiment:
    """An experiment on one sampled set of 40 tasks with five training seeds; `changes` replaces fields."""
    fields: dict[str, Any] = {
        "task_sets": ("sampled-40",),
        "contrast": _TO_BEAT,
        "task_set_seeds": (0,),
        "training_seeds": (0, 1, 2, 3, 4),
        "crossed": True,
        **changes,
    }
    return Experiment(title=title, source="ours", arms=arms_, note=note, **fields)


OUR_EXPERIMENTS: Mapping[str, Experiment] = {
    "claim": _control(
        "Does M3DT beat Prompt-DT of the same size and training FLOP?",
        (*arms(("random", "zero", "behavior")), *_CLAIM, Arm("prompt-dt-wide", budget="equal-flop")),
        "The paper's claim with nothing but the method changed. It also asks whether the grouping or the extra training helps.",
    ),
    "claim-budgets": _control(
        "The same at the published steps and at equal windows",
        (
            *(Arm("prompt-dt", equal_parameters=True, budget=budget) for budget in ("published", "equal-windows")),
            Arm("m3dt-gradient"),
        ),
        "Published: 1M steps for the baseline. Equal windows: as many as the three stages see, all experts together.",
    ),
    "claim-expert-data": _control("The claim on expert data alone", _CLAIM, condition="expert"),
    "claim-across-sets": _control(
        "The claim on three sets of tasks",
        _CLAIM,
        "Every task-set seed is combined with every training seed.",
        task_set_seeds=(0, 1, 2),
        training_seeds=(0, 1, 2),
    ),
    "target-return": _control(
        "How much the target return matters",
        arms(("prompt-dt", "m3dt-gradient"), [{"target_return_factor": factor} for factor in (0.5, 1.0, 1.5)]),
        "Every other experiment has one target return; none is picked afterwards.",
        training_seeds=(0, 1, 2),
    ),
    "ablations": Experiment(
        title="Routers, experts and residuals",
        source="the benchmark's specification",
        arms=arms(
            (
                *("m3dt-gradient", "m3dt-top-k", "m3dt-sample-router", "m3dt-big-experts", "m3dt-published-residual"),
                *("m3dt-oracle", "m3dt-all-tasks"),
            )
        ),
        task_sets=("mt160",),
        contrast=("m3dt-gradient", "m3dt-all-tasks"),
        note="The benchmark's specification names these ablations. It is not known here where the paper shows them.",
    ),
    "backbone-width": Experiment(
        title="M3DT-Small: a backbone of half the width",
        source="the benchmark's specification",
        arms=arms(("m3dt-random", "m3dt-gradient"), [{"embed_dim": width} for width in WIDTHS[:2]]),
        task_sets=("mt160",),
        contrast=None,
        note="The benchmark's specification names M3DT-Small without its size; ours is as wide as the small Prompt-DT.",
    ),
    "pretrained": Experiment(
        title="The first bank of the package: one training, several actors",
        source="ours",
        arms=(
            *arms(BANK_METHODS, [_FIRST_BANK]),
            *arms(("random", "behavior"), [_DATA]),
            Arm("bank-mixture", {**_FIRST_BANK, "later_seed": 1}),
        ),
        task_sets=("mt160",),
        contrast=("bank-mixture", "bank-backbone"),
        note="The first, at scale box. The last arm trains stages 2 and 3 again, which shows how much of the score is luck.",
        task_set_seeds=(0,),
        training_seeds=(0,),
        condition="best",
    ),
    "bank": Experiment(
        title="The bank in the wheel: one training, several actors",
        source="ours",
        arms=(*arms(BANK_METHODS, [_BANK]), *arms(("behavior",), [_EPISODES])),
        task_sets=("mt160",),
        contrast=("bank-mixture", "bank-backbone"),
        note="Run by `make pretrained` at scale wheel. Scales box and smoke have too few experts for its groups.",
        task_set_seeds=(0,),
        training_seeds=(0,),
        condition="policy",
    ),
    "methods": _control(
        "Every method once",
        arms((*UNTRAINED, *BASELINES, *M3DT_METHODS)),
        "One seed. It shows that every method runs, and what it costs.",
        training_seeds=(0,),
    ),
}
"""The experiments by name."""
