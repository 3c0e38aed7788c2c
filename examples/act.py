"""Plays one episode of one task: python examples/act.py BANK TASK [SEED]."""

import sys

import gymnasium as gym

import m3dt_agent
from m3dt_agent import M3DTAgent


def main(bank: str, task: str, seed: str = "0") -> None:
    agent = M3DTAgent.from_pretrained(bank)
    env = gym.make(f"M3DT/{task}-v0")
    obs, info = env.reset(seed=int(seed))
    agent.reset(task=task)  # prompt, observation statistics, target return
    reward, total, done = None, 0.0, False
    while not done:
        action = agent.act(obs, reward=reward)  # float32, inside env.action_space
        obs, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        done = terminated or truncated
    score = m3dt_agent.tasks.get(task).normalized_score(total, info.get("success"))
    print(f"{task}: return {total:.2f}, normalized score {score:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
