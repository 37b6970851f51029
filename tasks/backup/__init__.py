"""A second store that holds what a platform needs to begin again: `backup:` of lora-ops.yaml."""

from tasks.backup.mirror import Mirror, mirror_once
from tasks.backup.restore import restore
from tasks.backup.sync import Progress, Report, open_backup, sync

__all__ = ["Mirror", "Progress", "Report", "mirror_once", "open_backup", "restore", "sync"]
