"""Every setting in one place: frozen dataclasses with presets, validated on creation.

    ModelConfig       shape of the network                  presets tiny, quick, small, paper
    DataConfig        statistics, prompts, target returns   presets default, paper
    TrainConfig       what all stages share                 presets tiny, quick, small, paper (`train_preset`)
      BackboneConfig  + gradient-conflict early stop        stage 1
      ExpertsConfig   + grouping, experts at once           stage 2
      RouterConfig    + skipping and guiding experts        stage 3
    EvalConfig        episodes, seeds, slots

The `paper` presets follow the published *code* (context 20, prompt 5, AdamW), which produced the published numbers; Table 5 of
arXiv 2505.24378 says "prompt length 20" and "Adam" instead.
"""

from .checks import from_dict
from .data import DataConfig
from .evaluation import EVALUATION_SEED, EvalConfig
from .model import ModelConfig
from .stages import STAGES, Stage, stage_name
from .training import STAGE_CONFIGS, BackboneConfig, ExpertsConfig, RouterConfig, TrainConfig, train_preset

__all__ = [
    "EVALUATION_SEED",
    "STAGES",
    "STAGE_CONFIGS",
    "BackboneConfig",
    "DataConfig",
    "EvalConfig",
    "ExpertsConfig",
    "ModelConfig",
    "RouterConfig",
    "Stage",
    "TrainConfig",
    "from_dict",
    "stage_name",
    "train_preset",
]
