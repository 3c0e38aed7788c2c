"""Training steps per second of each stage and latency of `act`, ours against `baseline.py`, alternating in one process.

    python -m benchmarks.perf.model [--json] [--stage backbone|experts|router|act|all] [--experts 8 48] [--quick]

A training step is forward, backward, gradient clipping and a fused AdamW step on one synthetic batch at the paper preset (16
windows of 20 steps and prompts of 5 = 75 tokens, D 256, 6 layers); in stage 2 it is one step of every expert, 16 windows each,
in the stacks that training makes of them on this device. `act` is one decision for 1 and for 32 slots with full windows, routed
through all experts. Rows hold medians, the ratio of times (above 1: ours is faster), each side's GFLOP/s from counted matrix
products, and the ceiling: the fastest of three matrix sizes, measured right before. Peak memory is what the process grew by
during a step: activations and new gradients.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from m3dt_agent.config import ExpertsConfig, ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.model import M3DT
from m3dt_agent.training.experts import with_stacking

from .baseline import BaselineM3DT

CLIP, WINDOWS, SLOTS = 0.25, 16, (1, 32)
SCALES = {  # model, windows per step, repetitions, seconds after which a measurement ends early
    "paper": (ModelConfig.preset("paper"), WINDOWS, 15, 60.0),
    "quick": (ModelConfig(64, 2, 4, 8, context_length=20, prompt_length=5), 4, 3, 5.0),
}

Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One measurement: median seconds, counted GFLOP/s and peak MB of ours and of the baseline."""

    what: str
    experts: int
    ours_seconds: float
    baseline_seconds: float
    ratio: float
    ours_gflops: float
    baseline_gflops: float
    ceiling_gflops: float
    ours_peak_mb: float | None
    baseline_peak_mb: float | None
    rounds: int


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    config: ModelConfig
    windows: int
    rounds: int
    limit_seconds: float
    device: str
    precision: str

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.precision == "bfloat16")

    def models(self, n_experts: int) -> tuple[M3DT, BaselineM3DT]:
        """Ours and the baseline with equal weights; refuses to go on if they don't compute the same."""
        torch.manual_seed(0)
        model = M3DT(self.config_with(n_experts)).to(self.device)
        with torch.no_grad():
            for parameter in model.expert_tensors().values():
                parameter.normal_(std=0.02)
        baseline = BaselineM3DT(model).to(self.device)
        window, prompt = self.batch(2)
        for choice in ("none", *((0, "mixture") if n_experts else ())):
            with torch.no_grad():
                ours, theirs = model.eval()(window, prompt, choice), baseline.eval()(window, prompt, choice)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        return model.train(), baseline.train()

    def config_with(self, n_experts: int) -> ModelConfig:
        return ModelConfig(**{**asdict(self.config), "n_experts": n_experts})

    def batch(self, n_windows: int) -> tuple[Window, Window]:
        g = torch.Generator().manual_seed(1)

        def window(T: int) -> Window:
            shape, config = (n_windows, T), self.config
            return Window(
                torch.randn(*shape, config.state_dim, generator=g),
                torch.rand(*shape, config.act_dim, generator=g) * 2 - 1,
                torch.rand(*shape, 1, generator=g),
                torch.randint(0, config.max_timesteps, shape, generator=g),
                torch.ones(shape, dtype=torch.bool),
            ).to(self.device)

        return window(self.config.context_length), window(self.config.prompt_length)


def adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-4, fused=True)


def train_step(
    bench: Bench, model: nn.Module, parameters: list[nn.Parameter], choice: str | int, batch: tuple[Window, Window]
) -> Run:
    """One step on `parameters`, the only ones that need gradients."""
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = adamw(parameters)

    def step() -> None:
        optimizer.zero_grad()
        with bench.autocast():
            actions = model(*batch, choice)
        nn.functional.mse_loss(actions.float(), batch[0].actions).backward()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()

    return step


def stacked_step(bench: Bench, n_experts: int) -> Run:
    """One step of every expert, in the stacks that training makes of them here."""
    config = bench.config_with(n_experts)
    size = with_stacking(ExpertsConfig(steps=1, batch_size=bench.windows), config, bench.device).experts_at_once or n_experts
    sizes = [min(size, n_experts - first) for first in range(0, n_experts, size)]
    steps = [one_stack_step(bench, M3DT(bench.config_with(k)).to(bench.device).train(), k) for k in sizes]

    def step() -> None:
        for one in steps:
            one()

    return step


def one_stack_step(bench: Bench, model: M3DT, n_experts: int) -> Run:
    """One step of all of the model's experts; the gradient norm is clipped per expert, the loss is a sum of their means."""
    batch = bench.batch(bench.windows * n_experts)
    model.requires_grad_(False)
    parameters = list(model.expert_tensors().values())
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = adamw(parameters)

    def step() -> None:
        optimizer.zero_grad()
        with bench.autocast():
            actions = model(*batch, range(n_experts))
        (nn.functional.mse_loss(actions.float(), batch[0].actions) * n_experts).backward()
        grads = [p.grad for p in parameters if p.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in grads]).norm(dim=0)  # (E,)
        for g in grads:
            g.mul_((CLIP / (norms + 1e-6)).clamp(max=1).view(-1, *[1] * (g.ndim - 1)))
        optimizer.step()

    return step


def one_by_one_step(bench: Bench, model: BaselineM3DT, batch: tuple[Window, Window], n_experts: int) -> Run:
    """One step of every expert, one after the other, each with its own optimizer."""
    steps, own = [], [list(parts) for parts in zip(*(list(block.experts) for block in model.blocks), strict=True)]
    for e in range(n_experts):
        group = [p for expert in own[e] for p in expert.parameters()]
        steps.append((group, train_step(bench, model, group, e, batch)))

    model.requires_grad_(False)

    def step() -> None:
        for group, one in steps:
            for parameter in group:
                parameter.requires_grad_(True)
            one()
            for parameter in group:
                parameter.requires_grad_(False)

    return step


def stage_runs(bench: Bench, stage: str, n_experts: int) -> tuple[Run, Run]:
    """A training step of `stage`, ours and the baseline's."""
    model, baseline = bench.models(n_experts)
    if stage == "experts":
        return stacked_step(bench, n_experts), one_by_one_step(bench, baseline, bench.batch(bench.windows), n_experts)
    batch = bench.batch(bench.windows)
    if stage == "backbone":
        return (
            train_step(bench, model, list(model.backbone_tensors().values()), "none", batch),
            train_step(bench, baseline, list(baseline.parameters()), "none", batch),
        )
    routers = [p for block in baseline.blocks for p in block.router.parameters()]
    return (
        train_step(bench, model, list(model.router_tensors().values()), "mixture", batch),
        train_step(bench, baseline, routers, "mixture", batch),
    )


def act_runs(bench: Bench, n_slots: int, n_experts: int) -> tuple[Run, Run]:
    """One decision for every slot, ours (prompts encoded before) and the baseline's."""
    model, baseline = bench.models(n_experts)
    window, prompt = bench.batch(n_slots)
    model.eval(), baseline.eval()
    with torch.inference_mode(), bench.autocast():
        cache = model.encode_prompt(prompt, "mixture")

    def decide(function: Callable[..., Tensor], *inputs: object) -> Run:
        def run() -> None:
            with torch.inference_mode(), bench.autocast():
                function(*inputs, "mixture")

        return run

    return decide(model.act, window, cache), decide(baseline.act, window, prompt)


def measure(bench: Bench, what: str, n_experts: int, runs: tuple[Run, Run]) -> Row:
    """Times both runs in turns until `rounds` or the time limit, at least three times each."""
    flops, peaks = [count_flops(run) for run in runs], [peak_mb(bench, run) for run in runs]
    ceiling = matmul_ceiling(bench)
    times: tuple[list[float], list[float]] = ([], [])
    deadline = time.perf_counter() + bench.limit_seconds
    while len(times[0]) < 3 or (len(times[0]) < bench.rounds and time.perf_counter() < deadline):
        for run, taken in zip(runs, times, strict=True):
            taken.append(seconds(bench, run))
    ours, theirs = (statistics.median(t) for t in times)
    gflops = [f / t / 1e9 for f, t in zip(flops, (ours, theirs), strict=True)]
    return Row(what, n_experts, ours, theirs, theirs / ours, *gflops, ceiling, *peaks, len(times[0]))


def seconds(bench: Bench, run: Run) -> float:
    start = time.perf_counter()
    run()
    if bench.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def count_flops(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def peak_mb(bench: Bench, run: Run) -> float | None:
    """Memory a run adds at its peak; None where the system does not tell."""
    if bench.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs freed would hide what this one needs
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak resident size (proc(5))
    except (OSError, AttributeError):
        return None
    before_kb = _status_kb("VmRSS")
    run()
    return (_status_kb("VmHWM") - before_kb) / 1e3


def _status_kb(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])


def matmul_ceiling(bench: Bench) -> float:
    """The best GFLOP/s of a single product, over three sizes and five repetitions each."""
    dtype = torch.bfloat16 if bench.precision == "bfloat16" else torch.float32
    best = 0.0
    for n, k, m in ((2048, 2048, 2048), (1200, 256, 1024), (1200, 1024, 256)):
        a, b = torch.randn(n, k, device=bench.device).to(dtype), torch.randn(k, m, device=bench.device).to(dtype)
        best = max(best, *(2 * n * k * m / seconds(bench, lambda a=a, b=b: a @ b) / 1e9 for _ in range(5)))
    return best


def rows(bench: Bench, stages: list[str], expert_counts: list[int]) -> Iterator[Row]:
    """All measurements asked for."""
    if "backbone" in stages:
        yield measure(bench, "backbone step", 0, stage_runs(bench, "backbone", 0))
    for n_experts in expert_counts:
        for stage in ("experts", "router"):
            if stage in stages:
                yield measure(bench, f"{stage} step", n_experts, stage_runs(bench, stage, n_experts))
        if "act" in stages:
            for n_slots in SLOTS:
                yield measure(bench, f"act, {n_slots} slots", n_experts, act_runs(bench, n_slots, n_experts))


def table_line(row: Row) -> str:
    per_second = f"{1 / row.ours_seconds:8.3f}/s {1 / row.baseline_seconds:8.3f}/s  ratio {row.ratio:5.2f}"
    gflops = f"GFLOP/s {row.ours_gflops:6.1f} {row.baseline_gflops:6.1f} of {row.ceiling_gflops:6.1f}"
    peaks = " ".join("   ?" if mb is None else f"{mb:6.0f}" for mb in (row.ours_peak_mb, row.baseline_peak_mb))
    return f"{row.what:15s} E={row.experts:<3d} {per_second}  {gflops}  peak MB {peaks}  ({row.rounds} rounds)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--stage", choices=["backbone", "experts", "router", "act", "all"], default="all")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 48])
    parser.add_argument("--quick", action="store_true", help="a small model and few repetitions: does it run?")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    args = parser.parse_args()
    bench = Bench(*SCALES["quick" if args.quick else "paper"], args.device, args.precision)
    stages = ["backbone", "experts", "router", "act"] if args.stage == "all" else [args.stage]
    found = []
    for row in rows(bench, stages, args.experts):
        found.append(row)
        if not args.json:
            print(table_line(row), flush=True)
    if args.json:
        setting = {"threads": torch.get_num_threads(), "torch": torch.__version__, "device": args.device}
        setting |= {"precision": args.precision, "quick": args.quick}
        print(json.dumps({**setting, "rows": [asdict(row) for row in found]}, indent=2))


if __name__ == "__main__":
    main()
