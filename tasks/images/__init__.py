"""Images of the trainer: build one, push it, name it by its digest, bring it to every cloud's registry."""

from tasks.images.build import Built, build_and_push
from tasks.images.programs import DigestMismatch
from tasks.images.reference import Reference
from tasks.images.registry import Registries

__all__ = ["Built", "DigestMismatch", "Reference", "Registries", "build_and_push"]
