"""The exceptions of lora-ops.

* LoraOpsError            1
  x UsageError            2
  x ConfigError           3   a file, key or line of the user's is wrong
  x AuthError             4
  x NotFoundError         5   an unknown id (names the nearest)
  x ConflictError         6   another rollout is active, a decision no longer holds
    - Refused             6   the state machine refuses an event in this state
  x UnreachableError      7   serve or Prefect does not answer
  x PendingError          8   an approval is awaited
  x RolledBackError       9
  x StoreError            1
    - ObjectExists            a create-only put found the key taken
    - ObjectMissing
    - StoreLies               the store does not honour create-only
    - StoreUnavailable    7
      - StoreDenied       4   it answers, and refuses the credentials
    - StoreFull
  x JournalError          1   a document in the store is torn or foreign
  x BundleError           3   a source bundle cannot be made or is not what its name says

`exit_code` is the process's exit status, `kind` the stable word in JSON, `hint` the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar


class LoraOpsError(Exception):
    """What went wrong (`message`), what to do (`hint`), and a line for each detail."""

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "error"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, hint: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = list(details)

    def to_dict(self) -> dict[str, Any]:
        """The error as the JSON body of an HTTP answer."""
        return {
            "kind": self.kind,
            "message": self.message,
            "hint": self.hint,
            "exit_code": self.exit_code,
            "details": self.details,
        }

    @staticmethod
    def from_dict(body: Mapping[str, Any]) -> LoraOpsError:
        """Rebuild the error that `to_dict` wrote; an unknown kind becomes a plain LoraOpsError."""
        known: dict[str, type[LoraOpsError]] = {}
        for each in _tree(LoraOpsError):
            known.setdefault(each.kind, each)  # a subclass of elsewhere may share its parent's kind
        cls = known.get(str(body.get("kind")), LoraOpsError)
        details = [str(line) for line in body.get("details") or ()]
        return cls(str(body.get("message", "unknown error")), str(body.get("hint", "")), details)


class UsageError(LoraOpsError):
    exit_code = 2
    kind = "usage"
    http_status = 400


class ConfigError(LoraOpsError):
    exit_code = 3
    kind = "config"
    http_status = 422


class AuthError(LoraOpsError):
    exit_code = 4
    kind = "auth"
    http_status = 401


class NotFoundError(LoraOpsError):
    exit_code = 5
    kind = "not-found"
    http_status = 404


class ConflictError(LoraOpsError):
    exit_code = 6
    kind = "conflict"
    http_status = 409


class Refused(ConflictError):
    kind = "refused"


class UnreachableError(LoraOpsError):
    exit_code = 7
    kind = "unreachable"
    http_status = 503


class PendingError(LoraOpsError):
    exit_code = 8
    kind = "pending"
    http_status = 409


class RolledBackError(LoraOpsError):
    exit_code = 9
    kind = "rolled-back"


class StoreError(LoraOpsError):
    kind = "store"


class ObjectExists(StoreError):
    kind = "object-exists"


class ObjectMissing(StoreError):
    kind = "object-missing"


class StoreLies(StoreError):
    kind = "store-lies"


class StoreUnavailable(StoreError):
    exit_code = 7
    kind = "store-unavailable"
    http_status = 503


class StoreDenied(StoreUnavailable):
    exit_code = 4
    kind = "store-denied"


class StoreFull(StoreError):
    kind = "store-full"
    http_status = 507


class JournalError(LoraOpsError):
    kind = "journal"


class BundleError(LoraOpsError):
    exit_code = 3
    kind = "bundle"
    http_status = 422


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean …?` for the known name that is nearest, or the known names."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"Did you mean `{close[0]}`?"
    if not names:
        return "There is none yet."
    shown = ", ".join(names[-8:])
    return f"Known: {shown}."


def _tree(cls: type[LoraOpsError]) -> list[type[LoraOpsError]]:
    return [cls, *(sub for child in cls.__subclasses__() for sub in _tree(child))]
