"""The trainer's config: one YAML file for both worlds. Imports no torch."""

from trainer.config.parse import config_from, load_config, parse_config
from trainer.config.schema import TrackerConfig, TrainConfig
from trainer.errors import ConfigError, UserError

__all__ = [
    "ConfigError",
    "TrackerConfig",
    "TrainConfig",
    "UserError",
    "config_from",
    "load_config",
    "parse_config",
]
