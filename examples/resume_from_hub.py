"""Trains somebody else's published bank further: python examples/resume_from_hub.py REPO STAGE DATASETS BANK [STEPS].

REPO is an id on the Hugging Face Hub (namespace/name). STAGE is the last stage to take over: backbone (experts and router are
trained here) or experts (the router is trained here). DATASETS is a Minari root with the datasets that the bank was trained
on. BANK is a new folder for the result. Every stage has STEPS steps, by default 200.
"""

import sys

from m3dt_agent import M3DTAgent, TaskDatasets
from m3dt_agent.config import STAGES, train_preset


def main(repo: str, stage: str, datasets: str, bank: str, steps: str = "200") -> None:
    agent = M3DTAgent.from_pretrained(repo, revision=f"stage-{stage}")
    data = TaskDatasets.open(datasets, agent.tasks)
    for name in STAGES[STAGES.index(stage) + 1 :]:
        agent.fit_stage(name, data, bank=bank, config=train_preset("tiny", name, steps=int(steps)))
        print(f"{name}: {agent.bank.status(name)}")
    print(f"acts with: {agent.experts}; content hash {agent.content_hash}")


if __name__ == "__main__":
    main(*sys.argv[1:])
