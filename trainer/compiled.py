"""torch.compile that is never fatal: what cannot be compiled runs as it is, and one line says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

RECOMPILE_LIMIT = 64
"""Shapes of one module that are compiled before dynamo gives up; its own limit of 8 is less than the buckets
of a usual dataset."""


class Compiled:
    """Modules compiled in place: names, parameters and hooks stay what they are. `dynamic` false: once for
    each shape (pictures have few); None: for any length once there is a second one."""

    def __init__(
        self, modules: Sequence[nn.Module], warn: Callable[[str], None], *, dynamic: bool | None = False
    ) -> None:
        self._modules = list(modules)
        self._warn = warn
        for module in self._modules:
            compile_module(module, self._failed, dynamic)

    def gave_up(self, error: BaseException) -> bool:
        """Whether `error` (say, of a backward pass) is the compiler's, and the modules now run eagerly."""
        if not self._modules or not is_compile_error(error):
            return False
        self._failed(error)
        return True

    def _failed(self, error: BaseException) -> None:
        for module in self._modules:
            module._compiled_call_impl = None  # noqa: SLF001 - what nn.Module.compile sets
        if self._modules:
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            self._warn(f"compile: {type(error).__name__}: {first}; the run goes on without it.")
        self._modules = []


def compile_module(
    module: nn.Module, failed: Callable[[BaseException], None], dynamic: bool | None = False
) -> None:
    """Compile `module` in place at its first call. When the compiler raises, `failed` is told
    (it has to undo this) and the call is answered eagerly."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)  # noqa: SLF001
    eager: Callable[..., Any] = module._call_impl  # noqa: SLF001
    try:
        compiler: Callable[..., Any] = torch.compile
        fast = compiler(eager, dynamic=dynamic)
    except Exception as error:  # noqa: BLE001 - no compiler on this platform
        failed(error)
        return

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return fast(*args, **kwargs)
        except Exception as error:
            if not is_compile_error(error):
                raise
            failed(error)
        return eager(*args, **kwargs)

    module._compiled_call_impl = call  # noqa: SLF001


def is_compile_error(error: BaseException) -> bool:
    """Whether dynamo, inductor or triton raised it, at any place of its chain of causes."""
    seen: BaseException | None = error
    while seen is not None:
        module = type(seen).__module__
        if module.startswith(("torch._dynamo", "torch._inductor", "torch._functorch", "triton")):
            return True
        seen = seen.__cause__
    return False
