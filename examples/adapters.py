"""Runs one agent in three evaluation loops of other libraries: python examples/adapters.py BANK TASK META_WORLD_TASK.

They are Stable-Baselines3's `evaluate_policy`, Meta-World's `evaluation`, and a Gymnasium vector environment.
"""

import sys

import gymnasium as gym
import metaworld.evaluation
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

import m3dt_agent  # noqa: F401  (registers the M3DT/<task>-v0 ids)
from m3dt_agent import M3DTAgent
from m3dt_agent.adapters import MetaWorldPolicy, SB3Policy, metaworld_envs, run_episodes


def main(bank: str, task: str, metaworld_task: str) -> None:
    agent = M3DTAgent.from_pretrained(bank)

    mean, std = evaluate_policy(SB3Policy(agent, task), Monitor(gym.make(f"M3DT/{task}-v0")), n_eval_episodes=2)
    print(f"Stable-Baselines3: {task} {mean:.2f} ± {std:.2f}")

    envs = metaworld_envs([metaworld_task], seed=0)
    success, mean, _, _ = metaworld.evaluation.evaluation(MetaWorldPolicy.for_envs(agent, envs), envs, num_episodes=2)
    print(f"Meta-World: {metaworld_task} success {success:.2f}, return {mean:.2f}")
    envs.close()

    vector = gym.make_vec(f"M3DT/{task}-v0", num_envs=3)  # NEXT_STEP autoreset, Gymnasium's default
    agent.reset(task=task)
    print(f"Gymnasium: {task} {run_episodes(agent, vector, episodes=1, seed=0)}")
    vector.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
