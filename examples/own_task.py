"""Teaches an agent a task of your own, from an environment and a policy that shows it: python examples/own_task.py [FOLDER].

The task is to swing up Gymnasium's pendulum. FOLDER is a new folder for demonstrations and bank, by default my-task. It takes
less than a minute on two cores.
"""

import math
import sys
from pathlib import Path

from m3dt_agent import EvalConfig, M3DTAgent, ModelConfig, TaskDatasets, tasks
from m3dt_agent.config import train_preset
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.envs.make import task_of_env
from m3dt_agent.evaluation import evaluate, summarize
from m3dt_agent.tasks import Linear


def make(task):
    """The policy that shows the task; its actions in [-1, 1] mean torques from -2 to 2."""

    def act(observation):
        cos, sin, velocity = observation
        energy = velocity**2 / 2 + 15 * (cos - 1)
        pump = min(max(-energy * velocity / 3, -1), 1)
        hold = -(10 * math.atan2(sin, cos) + 2 * velocity) / 2
        near = 1 / (1 + math.exp(-20 * (cos - 0.85)))  # the top; a jump would be harder to imitate
        return [near * hold + (1 - near) * pump]

    return act


def main(folder: str = "my-task", steps: str = "400") -> None:
    swing = tasks.register(task_of_env("Pendulum-v1", name="swing", return_scale=200.0, score=Linear(-1500, 0)))
    shown = CollectConfig(levels={"custom": 1.0}, episodes=20, source="shown")
    noisy = CollectConfig(levels={"custom+0.3": 1.0, "custom+1.0": 1.0}, episodes=60, source="noisy")  # shows how to come back
    (demonstrator,) = collect([swing], Path(folder), shown, policy=make)
    collect([swing], Path(folder), noisy, policy=make)

    data = TaskDatasets.open(Path(folder), [swing], "noisy")
    agent = M3DTAgent(ModelConfig.preset("quick", n_experts=0), [swing])
    agent.fit_stage("backbone", data, bank=Path(folder, "bank"), config=train_preset("quick", "backbone", steps=int(steps)))
    score = summarize(evaluate(agent, [swing], EvalConfig(episodes=20))).mean_score
    print(f"demonstrator: {demonstrator.mean_normalized_score:.1f}\nagent: {score:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
