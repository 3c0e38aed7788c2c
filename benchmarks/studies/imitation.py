"""Measures what a sequence model needs to imitate well after little training, one setting at a time.

    python -m benchmarks.studies.imitation OUT --datasets ROOT [--arms NAME…] [--json FILE] [--workers N]

The first arm is the backbone of the first shipped bank. The next one changes what turned out to matter: one step per window,
many windows, no dropout, float32, a loose bound of the gradient. Each of the others changes one thing in that. The tasks are
the 20 of the learning curves and six of DMControl, where precision decides. `curves` says how arms are trained and evaluated;
compare scores at equal core-minutes.
"""

from __future__ import annotations

from dataclasses import replace

from .curves import Arm, Study, main
from .learning_curves import TASKS as TWENTY

PRECISE = ("pendulum-swingup", "walker-run", "reacher-hard", "cup-catch", "hopper-stand", "cartpole-swingup-sparse")
SHIPPED = Arm(condition="best", steps=(2_500,))
ONE_STEP = Arm(
    context_length=1,
    prompt_length=2,
    condition="best",
    batch_size=256,
    dropout=0.0,
    precision="float32",
    grad_clip=10.0,
    decay=True,
)

STUDY = Study(
    "imitation",
    (*TWENTY, *PRECISE),
    {
        "as shipped first": SHIPPED,
        "one step": ONE_STEP,
        "one step, no returns or timesteps": replace(ONE_STEP, use_returns=False, use_timesteps=False),
        "one step, no returns": replace(ONE_STEP, use_returns=False),
        "one step, clipped at 0.25": replace(ONE_STEP, grad_clip=0.25),
        "one step, embeddings 0.5": replace(ONE_STEP, embedding_std=0.5),
        "one step, average of weights": replace(ONE_STEP, ema=0.999),
        "one step, dropout 0.1": replace(ONE_STEP, dropout=0.1),
        "one step, bfloat16": replace(ONE_STEP, precision="bfloat16"),
        "one step, prompt of 1": replace(ONE_STEP, prompt_length=1),
        "one step, prompt of 5": replace(ONE_STEP, prompt_length=5),
        "one step, learning rate 3e-4": replace(ONE_STEP, learning_rate=3e-4),
        "two steps": replace(ONE_STEP, context_length=2),
        "two steps, truncated": replace(ONE_STEP, context_length=2, truncate_history=0.5),
        "four steps": replace(ONE_STEP, context_length=4, batch_size=128),
        "four steps, truncated": replace(ONE_STEP, context_length=4, batch_size=128, truncate_history=0.5),
        "eight steps": replace(ONE_STEP, context_length=8, batch_size=64),
        "eight steps, truncated": replace(ONE_STEP, context_length=8, batch_size=64, truncate_history=0.5),
    },
    steps=(1_000, 3_000),
)

if __name__ == "__main__":
    main(STUDY, __doc__)
