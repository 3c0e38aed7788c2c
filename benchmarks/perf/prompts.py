"""Measures training steps in which windows share prompts, against steps that compute a prompt for every window.

    python -m benchmarks.perf.prompts [--json [FILE]] [--quick] [--windows 256] [--distinct 16 64 128] [--device cuda]

The model is that of the preset `quick`, but 128 wide with three layers: windows of one step, prompts of two. Both ways are
steps of the training loop on the same synthetic batch, in turns. In stage 2 two experts are trained together. A task has two
prompts, so a batch of the quickstart's eight tasks has 16 distinct ones. Columns are as in `benchmarks.perf.model`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator

import torch

from m3dt_agent.config import ModelConfig

from .frame import add_options, begin
from .model import our_step
from .setting import Row, Setting, compare, report

_SHAPE = ModelConfig.preset("quick", embed_dim=128, n_layers=3, n_heads=4)


def rows(at: Setting, distinct: list[int]) -> Iterator[Row]:
    """Measures both stages for each number of distinct prompts."""
    for count in distinct:
        ids = torch.arange(at.windows) % count
        for stage, n_experts in (("backbone", 0), ("experts", 2)):
            experts = tuple(range(n_experts))
            ways = {
                way: ("float32", our_step(at, stage, "float32", at.model(n_experts), experts or "none", experts, given))  # type: ignore[arg-type]
                for way, given in {"a prompt per window": None, "each prompt once": ids}.items()
            }
            yield from compare(at, f"{stage} step, {count} prompts", ways)


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--distinct", type=int, nargs="+", default=[16, 64, 128])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    if args.quick:
        args.windows, args.distinct = 128, [4]
    record = begin("prompts", device=args.device, quick=args.quick)
    shape = dataclasses.replace(_SHAPE, n_experts=0)
    at = Setting(shape, args.windows, *((3, 5.0) if args.quick else (31, 60.0)), args.device)
    report(record, rows(at, args.distinct), args.json)


if __name__ == "__main__":
    main()
