"""The trainer's config: one YAML file for both worlds. Imports no torch."""

from trainer.config.parse import config_from, load_config, parse_config
from trainer.config.schema import TrackerConfig, TrainConfig

__all__ = ["TrackerConfig", "TrainConfig", "config_from", "load_config", "parse_config"]
