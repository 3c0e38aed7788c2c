"""Measures score against training FLOP for backbones of several sizes, contexts and data, to choose one for a long training.

    python -m benchmarks.studies.learning_curves OUT --datasets ROOT [--arms NAME…] [--json FILE] [--workers N]

There are 20 tasks in the proportions of the 160: six Meta-World, four DMControl, five ant-dir, five cheetah-vel. `curves` says
how arms are trained and evaluated.
"""

from __future__ import annotations

from .curves import Arm, Study, main

TASKS = (
    *("coffee-button", "dial-turn", "door-lock", "handle-press", "plate-slide-side", "peg-unplug-side"),
    *("walker-walk", "reacher-easy", "finger-turn-hard", "cheetah-run-back"),
    *("ant-dir-0", "ant-dir-3", "ant-dir-11", "ant-dir-16", "ant-dir-30"),
    *("cheetah-vel-0", "cheetah-vel-5", "cheetah-vel-13", "cheetah-vel-22", "cheetah-vel-30"),
)

STUDY = Study(
    "learning_curves",
    TASKS,
    {
        "128 wide, 3 layers": Arm(),
        "64 wide": Arm(embed_dim=64),
        "192 wide, 4 layers": Arm(embed_dim=192, n_layers=4, learning_rate=5e-4),
        "context 20": Arm(context_length=20),
        "mixture": Arm(condition="mixture"),
        "30 demonstrations": Arm(demonstrations=30),
        "learning rate 3e-4": Arm(learning_rate=3e-4),
        "best": Arm(condition="best"),
        "harder domains more often": Arm(domain_weights={"dmcontrol": 3, "metaworld": 2}),
    },
    steps=(1_000, 3_000, 9_000),
)

if __name__ == "__main__":
    main(STUDY, __doc__)
