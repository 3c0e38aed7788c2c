"""Compares an agent with the random policy on the ten tasks of mt10: python examples/evaluate_mt10.py BANK [EPISODES].

Both play the same episodes. The rows, one JSON line per episode, are written to files; scores and intervals come from them.
"""

import sys

from m3dt_agent import EvalConfig, M3DTAgent, tasks
from m3dt_agent.evaluation import evaluate, read_rows, summarize, write_rows


def main(bank: str, episodes: str = "10") -> None:
    config = EvalConfig(episodes=int(episodes), slots=20)
    for policy in (M3DTAgent.from_pretrained(bank), "random"):
        rows = evaluate(policy, tasks.task_set("mt10", seed=0), config)
        path = write_rows(f"rows-{rows[0].policy}.jsonl", rows)
        summary = summarize(read_rows(path))
        low, high = summary.mean_interval
        print(f"{summary.policy}: mean {summary.mean_score:.1f} (95% {low:.1f} to {high:.1f}), IQM {summary.iqm_score:.1f}")
        for task in summary.tasks.values():
            print(f"    {task.task:24} {task.mean_score:6.1f}   return {task.mean_return:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
