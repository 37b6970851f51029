"""The limits of Prefect's queues follow the sizes in the journal: a rollout's document may change them."""

from __future__ import annotations

from contextlib import suppress

from lora_ops.errors import NotFoundError
from lora_ops.state import AppState
from tasks.prefect_api import PrefectApi, track_queues


class Sizes:
    """What one process has set already saves it from asking Prefect again."""

    def __init__(self, prefect: PrefectApi) -> None:
        self.prefect = prefect
        self._set: dict[str, int] = {}

    def tick(self, state: AppState) -> None:
        for name, cloud in state.clouds.items():
            if self._set.get(name) != cloud.size:
                with suppress(NotFoundError):  # a pool that is made later is made with the right size
                    self.prefect.limit_queues(name, track_queues(cloud.size))
                self._set[name] = cloud.size
