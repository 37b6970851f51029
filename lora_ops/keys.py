"""Where everything lies in the object store (docs/architecture.md, "State")."""

from __future__ import annotations


def journal(app: str) -> str:
    return f"journal/{app}"


def request(request_id: str) -> str:
    """The prefix of a request's own journal and of all that belongs to it."""
    return f"requests/{request_id}"


def request_config(request_id: str) -> str:
    return f"{request(request_id)}/config.yaml"


def open_marker(request_id: str) -> str:
    return f"open/{request_id}"


def attempt(request_id: str, number: int) -> str:
    return f"{request(request_id)}/attempts/{number}"


def heartbeat(request_id: str, number: int) -> str:
    return f"{attempt(request_id, number)}/heartbeat.json"


def log(request_id: str, number: int) -> str:
    return f"{attempt(request_id, number)}/log.txt"


def rollout(rollout_id: str) -> str:
    return f"rollouts/{rollout_id}"


def looks(rollout_id: str) -> str:
    return f"{rollout(rollout_id)}/looks"


def look(rollout_id: str, number: int) -> str:
    return f"{looks(rollout_id)}/{number:06d}.json"


def flow(rollout_id: str) -> str:
    """The deploy flow's heartbeat."""
    return f"{rollout(rollout_id)}/flow.json"


def starts(rollout_id: str) -> str:
    return f"{rollout(rollout_id)}/starts"


def samples(rollout_id: str) -> str:
    return f"{rollout(rollout_id)}/samples"


def start(rollout_id: str | None, cloud: str, track: str, request_id: str, number: int) -> str:
    """An attempt's first write: below its rollout, or below its request outside of rollouts."""
    if rollout_id is None:
        return f"{attempt(request_id, number)}/start.json"
    return f"{starts(rollout_id)}/{cloud}/{track}/{request_id}-{number}.json"


def sample(rollout_id: str, cloud: str, track: str, request_id: str, number: int, late: bool = False) -> str:
    ending = "-late.json" if late else ".json"
    return f"{samples(rollout_id)}/{cloud}/{track}/{request_id}-{number}{ending}"


def checkpoints(request_id: str, number: int) -> str:
    return f"checkpoints/{request_id}/{number}"


def artifacts(request_id: str, number: int) -> str:
    return f"artifacts/{request_id}/{number}"
