"""Writes lerobot-v2.1/ or lerobot-v3.0/, whichever the installed LeRobot writes, with the frames of ../lerobot_frames.py.

Made with lerobot 0.3.3 (v2.1) and 0.4.4 (v3.0) under Python 3.11, in an environment of their own beside numpy 2.2.6, datasets 4
and torch: python make_lerobot.py. LeRobot adds timestamps, indices and statistics itself. torchvision, which it imports and
does not use here, was replaced by an empty module, because it does not run beside this torch.
"""

import inspect
import shutil
import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION, LeRobotDataset

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from lerobot_frames import FEATURES, frames  # noqa: E402

OWN = ("episode_index", "frame_index")  # LeRobot's own columns
folder = HERE / f"lerobot-{CODEBASE_VERSION}"
shutil.rmtree(folder, ignore_errors=True)
features = {name: {**feature, "shape": tuple(feature["shape"])} for name, feature in FEATURES.items() if name not in OWN}
features["observation.images.front"] = {"dtype": "image", "shape": (8, 8, 3), "names": ["height", "width", "channels"]}
dataset = LeRobotDataset.create("own/arm", fps=10, features=features, root=folder, use_videos=False)
for columns in frames():
    for t in range(len(columns["action"])):
        frame = {name: np.atleast_1d(columns[name][t]) for name in features if name in columns}
        frame["observation.images.front"] = np.full((8, 8, 3), 10 * t, np.uint8)
        if "task" in inspect.signature(dataset.add_frame).parameters:  # as v2.1 does
            dataset.add_frame(frame, task="reach")
        else:
            dataset.add_frame({**frame, "task": "reach"})
    dataset.save_episode()
if hasattr(dataset, "finalize"):
    dataset.finalize()
shutil.rmtree(folder / "images", ignore_errors=True)  # v2.1 leaves them beside the parquet files that hold them
