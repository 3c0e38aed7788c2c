"""Trains a bank and publishes it stage by stage: python examples/publish_a_bank.py REPO DATASETS TASK… [--token-file FILE].

REPO is an id on the Hugging Face Hub (namespace/name), or a folder written ./like/this. DATASETS is a Minari root, as
`m3dt collect` makes it. Without a token file, your login is used (`hf auth login`). If it is interrupted, run it again to
continue.
"""

import argparse
from pathlib import Path

from m3dt_agent import EvalConfig, M3DTAgent, ModelConfig, TaskDatasets
from m3dt_agent.config import train_preset
from m3dt_agent.evaluation import evaluate


def main(repo: str, datasets: Path, tasks: list[str], bank: Path, steps: int, token: str | None) -> None:
    data = TaskDatasets.open(datasets, tasks)
    agent = M3DTAgent(ModelConfig.preset("tiny", n_experts=min(3, len(tasks))), data.tasks)
    for stage in ("backbone", "experts", "router"):
        agent.fit_stage(stage, data, bank=bank, config=train_preset("tiny", stage, steps=steps))
        pushed = agent.push_to_hub(repo, token=token)
        print(f"{stage}: {len(pushed.files)} files sent, {pushed.tag} at {pushed.sha}")
    rows = evaluate(agent, tasks, EvalConfig(episodes=2, slots=len(tasks) * 2))
    print(f"card with scores: {agent.push_to_hub(repo, token=token, rows=rows).sha}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repo")
    parser.add_argument("datasets", type=Path)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--bank", type=Path, default=Path("bank"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--token-file", type=Path)
    given = parser.parse_args()
    secret = given.token_file.read_text().strip() if given.token_file else None
    main(given.repo, given.datasets, given.tasks, given.bank, given.steps, secret)
