"""Measures what a sequence model needs to imitate well after little training, one setting at a time.

    python -m benchmarks.studies.imitation OUT --datasets ROOT [--arms NAME…] [--json FILE] [--workers N]

The first arm is the backbone of the first shipped bank. The next one is the recipe of the second: one step per window, many
windows, no returns or timesteps, no norm of embedded tokens, larger first weights, no dropout, float32, a loose bound of the
gradient. Each of the others changes one thing in that. The tasks are the 20 of the learning curves and six of DMControl, where
precision decides. `curves` says how arms are trained and evaluated; compare scores at equal core-minutes.
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
    use_returns=False,
    use_timesteps=False,
    use_embed_norm=False,
    embedding_std=0.2,
    block_std=0.06,
    decay=True,
)

STUDY = Study(
    "imitation",
    (*TWENTY, *PRECISE),
    {
        "as shipped first": SHIPPED,
        "one step": ONE_STEP,
        "with returns and timesteps": replace(ONE_STEP, use_returns=True, use_timesteps=True),
        "with returns": replace(ONE_STEP, use_returns=True),
        "with the norm of tokens": replace(ONE_STEP, use_embed_norm=True),
        "first weights 0.02": replace(ONE_STEP, embedding_std=0.02, block_std=0.02),
        "norm, first weights 0.02": replace(ONE_STEP, use_embed_norm=True, embedding_std=0.02, block_std=0.02),
        "clipped at 0.25": replace(ONE_STEP, grad_clip=0.25),
        "average of weights": replace(ONE_STEP, ema=0.999),
        "dropout 0.1": replace(ONE_STEP, dropout=0.1),
        "bfloat16": replace(ONE_STEP, precision="bfloat16"),
        "prompt of 1": replace(ONE_STEP, prompt_length=1),
        "prompt of 5": replace(ONE_STEP, prompt_length=5),
        "learning rate 3e-4": replace(ONE_STEP, learning_rate=3e-4),
        "learning rate 3e-3": replace(ONE_STEP, learning_rate=3e-3),
        "64 windows": replace(ONE_STEP, batch_size=64),
        "two steps": replace(ONE_STEP, context_length=2),
        "four steps, 128 windows": replace(ONE_STEP, context_length=4, batch_size=128),
        "four steps, 128 windows, truncated": replace(ONE_STEP, context_length=4, batch_size=128, truncate_history=0.5),
        "eight steps, 64 windows": replace(ONE_STEP, context_length=8, batch_size=64),
        "eight steps, 64 windows, truncated": replace(ONE_STEP, context_length=8, batch_size=64, truncate_history=0.5),
    },
    steps=(1_000, 3_000),
)

if __name__ == "__main__":
    main(STUDY, __doc__)
