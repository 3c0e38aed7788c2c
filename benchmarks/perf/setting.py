"""What the programs that measure the model share: sizes, our model, the baseline with equal weights, a synthetic batch."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from m3dt_agent.config import ModelConfig
from m3dt_agent.data.batches import Window
from m3dt_agent.model import M3DT

from .baseline import BaselineM3DT
from .frame import Record, Run, Timing, alternate, finish, matmul_ceilings, peak_mb, table_wanted

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Setting:
    """What all measurements of a program share. windows: per training step. rounds, limit_seconds: for `frame.alternate`."""

    config: ModelConfig
    windows: int
    rounds: int
    limit_seconds: float
    device: str

    def model(self, n_experts: int) -> M3DT:
        """Our model with random weights, also in the experts, because untrained experts add nothing."""
        torch.manual_seed(0)
        model = M3DT(dataclasses.replace(self.config, n_experts=n_experts)).to(self.device)
        with torch.no_grad():
            for parameter in model.expert_tensors().values():
                parameter.normal_(std=0.02)
        return model

    def baseline(self, model: M3DT) -> BaselineM3DT:
        """The baseline with the model's weights.

        Raises:
            AssertionError: the two do not compute the same.
        """
        baseline = BaselineM3DT(model).to(self.device)
        window, prompt = self.batch(2)
        for choice in ("none", *((0, "mixture") if model.config.n_experts else ())):
            with torch.no_grad():
                ours, theirs = model.eval()(window, prompt, choice), baseline.eval()(window, prompt, choice)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        model.train(), baseline.train()
        return baseline

    def batch(self, n_windows: int) -> tuple[Window, Window]:
        """Windows and prompts without padding."""
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

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[object]:
        """The context in which the baseline computes in `precision`."""
        return torch.autocast(self.device, torch.bfloat16, enabled=precision == "bfloat16")

    def ceilings(self) -> dict[str, float]:
        """Precision → the best GFLOP/s of a matrix product, measured now."""
        return {name: max(found.values()) for name, found in matmul_ceilings(device=self.device).items()}


SETTINGS = {
    "paper": (ModelConfig.preset("paper"), 16, 15, 60.0),
    "quick": (ModelConfig(64, 2, 4, 8, context_length=20, prompt_length=5), 4, 3, 5.0),
}


def setting(quick: bool, device: str) -> Setting:
    """The paper preset, or a small model for `--quick`."""
    return Setting(*SETTINGS["quick" if quick else "paper"], device)


@dataclass(frozen=True)
class Row:
    """One way of doing `what`. ratio: the first way's time over this one's. gflops: GFLOP/s of its matrix products."""

    what: str
    way: str
    seconds: float
    ratio: float
    gflops: float
    ceiling_gflops: float  # of the way's precision
    peak_mb: float | None
    rounds: int


def compare(setting: Setting, what: str, ways: dict[str, tuple[str, Run]]) -> list[Row]:
    """Times all ways, name → (precision, run), in turns. The others are compared with the first."""
    runs = [run for _, run in ways.values()]
    flops = [_count_flops(run) for run in runs]
    peaks = [peak_mb(run, setting.device) for run in runs]
    ceilings = setting.ceilings()
    timing: Timing = alternate(runs, rounds=setting.rounds, limit_seconds=setting.limit_seconds, device=setting.device)
    return [
        Row(what, way, taken, timing.medians[0] / taken, flop / taken / 1e9, ceilings[precision], peak, timing.rounds)
        for (way, (precision, _)), taken, flop, peak in zip(ways.items(), timing.medians, flops, peaks, strict=True)
    ]


def table_line(row: Row) -> str:
    """A row as a line of the table."""
    peak = "    ?" if row.peak_mb is None else f"{row.peak_mb:5.0f}"
    return (
        f"{row.what:24s} {row.way:24s} {1e3 * row.seconds:9.1f} ms  ratio {row.ratio:6.2f}  "
        f"GFLOP/s {row.gflops:7.1f} = {100 * row.gflops / row.ceiling_gflops:3.0f}% of {row.ceiling_gflops:6.1f}  "
        f"peak MB {peak}  ({row.rounds} rounds)"
    )


def report(record: Record, rows: Iterable[Row], json_path: str | None) -> None:
    """Prints rows as they come and writes them all to `json_path`, the value of `--json`."""
    found = []
    for row in rows:
        found.append(row)
        if table_wanted(json_path):
            print(table_line(row), flush=True)
    finish(record, found, json_path=json_path)


def lowered(model: M3DT, precision: str) -> M3DT:
    """A copy of the model for acting, with its blocks stored in `precision`."""
    acting = copy.deepcopy(model).eval().requires_grad_(False)
    if precision == "bfloat16":
        acting.lower_frozen(torch.bfloat16)
    return acting


def _count_flops(run: Run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
