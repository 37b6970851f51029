"""Every key of the config, with its range and its usual choice."""

from __future__ import annotations

from pathlib import Path

import yaml

from trainer.config.adapter_keys import AdapterKeys, LearningKeys
from trainer.config.data_keys import DataKeys, ImageKeys, TextKeys
from trainer.config.fields import default_cache_root
from trainer.config.run_keys import RunKeys, TrackerConfig

__all__ = ["TrackerConfig", "TrainConfig", "default_cache_root"]


class TrainConfig(TextKeys, ImageKeys, LearningKeys, AdapterKeys, RunKeys, DataKeys):
    """One training. Relative paths are relative to the current folder, not to the config file."""

    @property
    def alpha(self) -> float:
        """The effective lora_alpha: lora_rank when unset."""
        return float(self.lora_rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def cache_root(self) -> Path:
        """The effective cache folder."""
        return self.cache_dir if self.cache_dir is not None else default_cache_root()

    def to_yaml(self) -> str:
        """YAML of the keys that were given, and of no defaults: another release of the trainer may not
        know this one's newer keys. `parse_config` reads it back to an equal config."""
        return yaml.safe_dump(
            self.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True
        )
