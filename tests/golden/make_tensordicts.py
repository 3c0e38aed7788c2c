"""Writes `tdmpc2_tensordict_<version>.pt`, small files in TD-MPC2's format, with the tensordict that is installed.

tensordict is not among this project's dependencies, and its versions pickle differently, so each file was made in an
environment of its own: `python make_tensordicts.py` after `pip install --no-deps tensordict==<version>` beside torch 2.13. The
numbers are plain, so that the test can say what they must be: number d of row t of episode e is e + t/10 + d/100, for actions a
tenth of that; padding is zero, and row 0 has no action and reward.
"""

from __future__ import annotations

from pathlib import Path

import tensordict
import torch
from tensordict import TensorDict

EPISODE_TASKS, ROWS = (7, 4, 7), 4  # pendulum-swingup is 3 and 1 wide, reacher-easy 6 and 2
WIDTHS = {7: (3, 1), 4: (6, 2)}


def numbers(width: int) -> torch.Tensor:
    e, t, d = torch.arange(len(EPISODE_TASKS)), torch.arange(ROWS), torch.arange(width)
    return (e[:, None, None] + t[:, None] / 10 + d / 100).float()


def main() -> None:
    obs, action, reward = numbers(6), numbers(2) / 10, numbers(1)[..., 0]
    for e, task in enumerate(EPISODE_TASKS):
        obs[e, :, WIDTHS[task][0] :] = 0
        action[e, :, WIDTHS[task][1] :] = 0
    action[:, 0], reward[:, 0] = float("nan"), float("nan")
    task = torch.tensor(EPISODE_TASKS, dtype=torch.int32)[:, None].repeat(1, ROWS)
    fields = {"obs": obs, "action": action, "reward": reward, "task": task}
    made = TensorDict(fields, batch_size=[len(EPISODE_TASKS), ROWS], device="cpu")
    torch.save(made, Path(__file__).parent / f"tdmpc2_tensordict_{tensordict.__version__}.pt")


if __name__ == "__main__":
    main()
