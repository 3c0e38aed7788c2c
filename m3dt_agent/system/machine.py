"""What this machine has: cores, devices, terminals, and the diagnosis that `m3dt doctor` prints.

versions      of this package and of every package it can use; None: not installed
simulators    per group of domains, "ok" or what is missing
rendering     per GL backend of MuJoCo, "ok" if it draws a frame here (each is tried in its own process), or the error
cores         how many this process may use; threads: how many torch uses
precision     seconds of one feed-forward product, forward and backward, in float32 and in bfloat16
disk_free     free bytes where datasets and banks would go
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError

if TYPE_CHECKING:
    import torch

PACKAGES = (
    *("m3dt-agent", "torch", "numpy", "gymnasium", "minari", "h5py", "safetensors", "huggingface_hub", "scikit-learn"),
    *("metaworld", "mujoco", "dm_control", "shimmy", "stable-baselines3", "sbx-rl", "matplotlib", "tensorboard", "ray"),
)
SIMULATORS = {
    "metaworld": ("metaworld", "mujoco"),
    "dmcontrol": ("dm_control", "shimmy", "mujoco"),
    "ant-dir, cheetah-vel": ("mujoco",),
}
GL_BACKENDS = ("egl", "osmesa", "glfw")
QUIET = "M3DT_QUIET"
"""The environment variable that `m3dt --quiet` sets."""

_DRAW = """
from m3dt_agent.envs.rendering import try_renderer, without_broken_opengl
with without_broken_opengl("mujoco"):
    import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><light pos='0 0 3'/><geom size='.1'/></worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer, fault = try_renderer(model, 32)
if fault is None:
    renderer.update_scene(data)
    fault = "ok" if renderer.render().any() else "an empty picture"
    renderer.close()
print(fault)
"""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `diagnose` found; the module's docstring explains the fields."""

    python: str
    system: str
    versions: dict[str, str | None]
    simulators: dict[str, str]
    rendering: dict[str, str]
    cores: int
    threads: int
    cuda: str | None
    precision: dict[str, float]
    disk_free: dict[str, int]

    @property
    def bf16_speed(self) -> float:
        """How many times faster bfloat16 is than float32 on this machine."""
        return self.precision["float32"] / self.precision["bfloat16"]


def diagnose(folder: Path = Path(), *, rendering: bool = True) -> Diagnosis:
    """Examines this machine; takes a few seconds, most of them for the rendering backends. folder: whose disk is meant."""
    import torch

    return Diagnosis(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        versions={name: _version(name) for name in PACKAGES},
        simulators={name: _missing(needs) for name, needs in SIMULATORS.items()},
        rendering={name: try_rendering(name) for name in _backends()} if rendering else {},
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        cuda=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        precision=measure_precision(),
        disk_free={str(folder.resolve()): shutil.disk_usage(_existing(folder)).free},
    )


def usable_cores() -> int:
    """How many cores this process may use: a container or `taskset` may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has none


def is_quiet() -> bool:
    """Whether nobody wants to read progress and notes: `m3dt --quiet`, which sets `QUIET` for this process and its workers."""
    return bool(os.environ.get(QUIET))


def usable_devices() -> tuple[str, ...]:
    """The devices on which torch can compute here: "cpu" and, with a GPU, its kind ("cuda", "mps", …) and each by number."""
    import torch

    if not torch.accelerator.is_available():  # a build of torch for GPUs may run where there is none
        return ("cpu",)
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return ("cpu", kind.type, *(f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())))


def torch_device(device: str | torch.device) -> torch.device:
    """The device called `device`, if torch can compute on it here.

    Raises:
        ConfigError: it cannot, or there is no such device; the message lists those that there are.
    """
    import torch

    usable = usable_devices()
    if isinstance(device, str | torch.device):
        with contextlib.suppress(RuntimeError):  # torch knows no such kind of device
            found = torch.device(device)
            if str(found) in (*usable, "cpu:0"):
                return found
    raise ConfigError(f"device must be one of {', '.join(usable)} (what torch can use here); got {str(device)!r}")


def shows_progress(progress: bool | None) -> bool:
    """Whether to show a progress bar; None: only if stderr is a terminal, and not with `m3dt --quiet`."""
    return sys.stderr.isatty() and not is_quiet() if progress is None else progress


def duration(seconds: float) -> str:
    """A time as a person says it: 45 s, 12 min, 3.5 h, 9.2 days."""
    for size, unit in ((86_400, "days"), (3_600, "h")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def try_rendering(backend: str) -> str:
    """ "ok" if MuJoCo draws a frame with this GL backend, else what went wrong, in one line."""
    if importlib.util.find_spec("mujoco") is None:
        return "mujoco is not installed"
    environment = {**os.environ, "MUJOCO_GL": backend}
    try:
        run = subprocess.run([sys.executable, "-c", _DRAW], env=environment, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return "no frame within 60 s"
    said = run.stdout.splitlines() or [line for line in run.stderr.splitlines() if "Error" in line and not line.startswith(" ")]
    return said[-1] if said else f"exit code {run.returncode}"


def measure_precision(width: int = 256, tokens: int = 1200, repeats: int = 7) -> dict[str, float]:
    """Per precision, the median seconds of a (tokens, width) · (width, 4·width) product with its backward pass.

    The defaults are one feed-forward layer of the paper preset on 16 windows of 25 steps.
    """
    import torch

    x = torch.randn(tokens, width)
    weight = torch.randn(4 * width, width, requires_grad=True)

    def product(bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = torch.nn.functional.linear(x, weight)
        torch.autograd.grad(y, weight, torch.ones_like(y))

    return {
        "float32": _median_seconds(functools.partial(product, False), repeats),
        "bfloat16": _median_seconds(functools.partial(product, True), repeats),
    }


def _median_seconds(work: Callable[[], None], repeats: int) -> float:
    seconds = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])  # the first two include allocation and the choice of kernels


def _backends() -> tuple[str, ...]:
    """MuJoCo's backends, and what `MUJOCO_GL` names if that is none of them."""
    return tuple(dict.fromkeys((*GL_BACKENDS, *filter(None, [os.environ.get("MUJOCO_GL", "")]))))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing(modules: tuple[str, ...]) -> str:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"needs {', '.join(missing)}: pip install 'm3dt-agent[envs]'" if missing else "ok"


def _existing(folder: Path) -> Path:
    """`folder`, or its nearest parent that exists."""
    folder = folder.resolve()
    return next(parent for parent in (folder, *folder.parents) if parent.exists())
