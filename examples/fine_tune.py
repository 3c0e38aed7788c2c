"""Fits a bank to a few of its tasks and publishes the result: python examples/fine_tune.py REPO DATASETS TASK… [--bank BANK].

The backbone and the experts stay as they are. Only the router, which weighs the experts, is trained further, on your
demonstrations of these tasks. REPO is an id on the Hugging Face Hub, or a folder written ./like/this. DATASETS is a Minari
root, as `m3dt collect` makes it. BANK is a bank with experts, by default builtin:mt160. If it is interrupted, run it again to
continue.
"""

import argparse
from pathlib import Path

from m3dt_agent import EvalConfig, M3DTAgent, TaskDatasets
from m3dt_agent.config import train_preset
from m3dt_agent.evaluation import evaluate
from m3dt_agent.scores import summarize


def main(repo: str, datasets: Path, tasks: list[str], bank: str, own: Path, steps: int, token: str | None) -> None:
    given = M3DTAgent.from_pretrained(bank)
    if not own.exists():
        given.bank.for_tasks(own, tasks)
    agent = M3DTAgent.load(own)
    data = TaskDatasets.open(datasets, agent.tasks)
    settings = train_preset("small", "router", steps=steps, learning_rate=1e-4, cooldown_steps=steps // 2, warmup_steps=0)
    agent.fit_stage("router", data, bank=own, config=settings, start=given.bank)
    episodes = EvalConfig(episodes=2, slots=2 * len(tasks), stop_on_success=True)
    rows = evaluate(agent, tasks, episodes)
    for name, found in (("before", evaluate(given, tasks, episodes)), ("after", rows)):
        print(f"{name}: mean score {summarize(found).mean_score:.1f}")
    print(f"published: {agent.push_to_hub(repo, token=token, rows=rows).tag}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repo")
    parser.add_argument("datasets", type=Path)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--bank", default="builtin:mt160")
    parser.add_argument("--own", type=Path, default=Path("my-bank"), help="a new folder for the result")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--token-file", type=Path)
    chosen = parser.parse_args()
    secret = chosen.token_file.read_text().strip() if chosen.token_file else None
    main(chosen.repo, chosen.datasets, chosen.tasks, chosen.bank, chosen.own, chosen.steps, secret)
