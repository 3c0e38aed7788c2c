"""What the banks of the tests of `agent` are for, and what is in them: four tasks of different widths, a tiny model."""

from m3dt_agent.config import ModelConfig

NAMES = ("reach", "walker-run", "ant-dir-3", "cheetah-vel-25")
CONFIG = ModelConfig.preset("tiny", max_timesteps=15)
