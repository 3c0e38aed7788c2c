"""Measures the latency of `act`, dense and with k experts per block, against `baseline.py` in the same process.

    python -m benchmarks.perf.acting [--json [FILE]] [--quick] [--slots 1 32 160] [--experts 8 48] [--kept 1 2 4 8 16 48]

A run decides once for every slot, at the paper preset with full windows, in both precisions. The baseline recomputes prompt and
window with plain modules and a loop over experts; ours has encoded the prompts before. Routed rows use `Routing(max_experts=k)`
for one slot. They show what k experts cost; with random weights, their actions mean nothing. Columns are as in
`benchmarks.perf.model`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import torch

from m3dt_agent.model import M3DT, ExpertChoice, Routing

from .baseline import BaselineM3DT
from .frame import Run, add_options, begin
from .setting import PRECISIONS, Row, Setting, compare, lowered, report, setting


def ours(at: Setting, model: M3DT, experts: ExpertChoice, n_slots: int) -> Run:
    """A run of one decision with our model, whose prompts are encoded before."""
    window, prompt = at.batch(n_slots)
    with torch.inference_mode(), model.autocast():
        cache = model.encode_prompt(prompt, "mixture")

    def decide() -> None:
        with torch.inference_mode(), model.autocast():
            model.act(window, cache, experts)

    return decide


def theirs(at: Setting, baseline: BaselineM3DT, precision: str, n_slots: int) -> Run:
    """A run of one decision with the baseline."""
    window, prompt = at.batch(n_slots)

    def decide() -> None:
        with torch.inference_mode(), at.autocast(precision):
            baseline.act(window, prompt, "mixture")

    return decide


def rows(at: Setting, slots: list[int], expert_counts: list[int], kept: list[int]) -> Iterator[Row]:
    """Measures everything that the command line asks for."""
    for n_experts in expert_counts:
        model = at.model(n_experts)
        baseline = at.baseline(model).eval()
        acting = {precision: lowered(model, precision) for precision in PRECISIONS}
        for n_slots in slots:
            ways = {f"baseline {p}": (p, theirs(at, baseline, p, n_slots)) for p in PRECISIONS}
            ways |= {f"ours {p}": (p, ours(at, m, "mixture", n_slots)) for p, m in acting.items()}
            yield from compare(at, f"act, {n_slots} slots, E={n_experts}", ways)
        ways = {"baseline float32": ("float32", theirs(at, baseline, "float32", 1))}
        for k in (k for k in kept if k <= n_experts):
            routing = Routing(max_experts=k)
            ways |= {f"{k} kept, {p}": (p, ours(at, _apart(m), routing, 1)) for p, m in acting.items()}
        yield from compare(at, f"routed act, E={n_experts}", ways)


def _apart(model: M3DT) -> M3DT:
    """A model with the same parameters in new modules. Modules remember which experts they used, so each run needs its own."""
    return copy.deepcopy(model, {id(p): p for p in model.parameters()})


def main() -> None:
    """Parses the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 32, 160])
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 48])
    parser.add_argument("--kept", type=int, nargs="+", default=[1, 2, 4, 8, 16, 48])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    args = parser.parse_args()
    record = begin("acting", device=args.device, quick=args.quick)
    report(record, rows(setting(args.quick, args.device), args.slots, args.experts, args.kept), args.json)


if __name__ == "__main__":
    main()
