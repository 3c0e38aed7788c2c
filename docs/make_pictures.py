"""The pictures of README and docs that are made from data; run from a checkout, with a renderer.

    MUJOCO_GL=osmesa python docs/make_pictures.py [frames] [film] [scores] [pages]
    python docs/draw_house.py

    frames   docs/_static/frames/<task>.webp   one frame of every task, from an episode of its behavior policy
    film     docs/_static/tasks.webp           16 tasks played by `builtin:mt160`, as `m3dt eval --video` draws them
    scores   docs/_static/scores.png           mean scores by domain, from the rows of benchmarks/results
    pages    docs/_static/view-*.webp          two pages of `m3dt view`, as a browser shows them; needs Chromium

Without a name it makes all four, in twenty minutes on two cores.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
from PIL import Image
from tqdm import tqdm

from m3dt_agent import M3DTAgent, tasks
from m3dt_agent.config import EvalConfig
from m3dt_agent.data.behavior import behavior_policy
from m3dt_agent.data.collect import CollectConfig, collect
from m3dt_agent.evaluation.videos import record
from m3dt_agent.scores import read_rows, summarize
from m3dt_agent.view import Request, write_page

ROOT = Path(__file__).parents[1]
STATIC = ROOT / "docs" / "_static"
RESULTS = ROOT / "benchmarks" / "results"
FRAME = 128  # pixels
STEPS_BEFORE_FRAME = 60
FILM_TASKS = (
    *("drawer-open", "door-open", "hammer", "pick-place", "assembly", "coffee-pull"),
    *("walker-walk", "walker-stand", "cheetah-run", "cartpole-balance", "reacher-three-easy", "pendulum-spin"),
    *("ant-dir-10", "ant-dir-25", "cheetah-vel-10", "cheetah-vel-30"),
)
PAGE_TASKS = (
    *("reach", "drawer-open", "walker-walk", "cartpole-swingup"),
    *("ant-dir-3", "ant-dir-20", "cheetah-vel-10", "cheetah-vel-25"),
)
POLICIES = {  # name in the figure → run and cell, colour (Okabe and Ito)
    "random actions": ("2026-11-29-pretrained/cells/dbe59f95e1eb", "#999999"),
    "the first bank": ("2026-11-29-pretrained/cells/32b88d8638c6", "#0072B2"),
    "builtin:mt160": ("2026-11-30-bank-3/cells/0d389f58485d", "#D55E00"),
    "behavior policies": ("2026-11-29-pretrained/cells/cf74d058b880", "#009E73"),
}


def frames() -> None:
    """One frame of every task, FRAME pixels high and wide."""
    folder = STATIC / "frames"
    folder.mkdir(parents=True, exist_ok=True)
    for task in tqdm(tasks.TASKS, desc="frames", unit="task", disable=None):
        picture = Image.fromarray(frame_of(task)).resize((FRAME, FRAME), Image.Resampling.LANCZOS)
        picture.save(folder / f"{task.name}.webp", quality=70, method=6)


def frame_of(task: tasks.TaskSpec) -> Any:
    """(height, width, 3) uint8 pixels after STEPS_BEFORE_FRAME steps, or at success if that comes first."""
    env = gym.make(task.env_id, render_mode="rgb_array", disable_env_checker=True)
    policy = behavior_policy(task, "expert")
    observation, _ = env.reset(seed=0)
    policy.reset(0)
    for _ in range(STEPS_BEFORE_FRAME):
        observation, _, terminated, truncated, info = env.step(policy(observation))
        if terminated or truncated or info.get("success"):
            break
    pixels = env.render()
    env.close()
    return pixels


def film() -> None:
    """Sixteen tasks side by side, played by the shipped bank on the first episode of an evaluation."""
    agent = M3DTAgent.from_pretrained("builtin:mt160")
    record(agent, tasks.resolve(FILM_TASKS), STATIC / "tasks.webp", EvalConfig(stop_on_success=True), progress=True)


def scores() -> None:
    """Mean normalized score by domain, and over all tasks, of the shipped bank and of what it is compared with."""
    from matplotlib.figure import Figure

    groups = {"all 160": tasks.TASKS, **{domain: tasks.by_domain(domain) for domain in tasks.DOMAINS}}
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(POLICIES)
    for i, (name, (cell, colour)) in enumerate(POLICIES.items()):
        found = summarize(read_rows(RESULTS / cell / "rows-1.00.jsonl")).tasks
        means = [sum(found[task.name].mean_score for task in members) / len(members) for members in groups.values()]
        places = [g + (len(POLICIES) - 1 - i) * height for g in range(len(groups))]
        bars = axes.barh(places, means, height * 0.92, color=colour, label=name)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    labels = [name if name.startswith("all") else f"{name} ({len(members)})" for name, members in groups.items()]
    axes.set_yticks([g + 0.4 - height / 2 for g in range(len(groups))], labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 108)
    axes.set_xlabel("mean normalized score, 0 to 100; 25 episodes a task")
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], names[::-1], frameon=False, fontsize=9, ncols=4, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    STATIC.mkdir(parents=True, exist_ok=True)
    figure.savefig(STATIC / "scores.png", dpi=130, facecolor="white")


def pages() -> None:
    """The tops of a page of eight datasets, which are collected for it, and of the page of the shipped bank."""
    rows = tuple(RESULTS / POLICIES[name][0] / "rows-1.00.jsonl" for name in ("builtin:mt160", "behavior policies"))
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # paths are on the pages
        levels = {"random": 0.25, "expert": 0.75}
        collect(tasks.resolve(PAGE_TASKS), "datasets", CollectConfig(levels, episodes=8), workers=0)
        for name, what, request in (
            ("datasets", "datasets", Request(clips=PAGE_TASKS[:1])),
            ("bank", "builtin:mt160", Request(rows=rows)),
        ):
            picture(write_page(what, request=request).path.absolute(), STATIC / f"view-{name}.webp")


def picture(page: Path, out: Path) -> None:
    """The top of a page, as WebP."""
    chromium = shutil.which("chromium")
    assert chromium is not None
    shot = page.with_suffix(".png")
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1560"]
    command += ["--virtual-time-budget=20000", f"--user-data-dir={page.parent / 'profile'}", f"--screenshot={shot}"]
    subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=600)
    Image.open(shot).convert("RGB").save(out, quality=75, method=6)


PICTURES = {"frames": frames, "film": film, "scores": scores, "pages": pages}

if __name__ == "__main__":
    for name in sys.argv[1:] or PICTURES:
        PICTURES[name]()
