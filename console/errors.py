"""Every failure as one JSON shape: {"error": {kind, message, hint, exit_code, details}}."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from console.views import JsonAnswer
from lora_ops.errors import ConfigError, LoraOpsError, NotFoundError, UsageError, nearest

_METHODS = "GET, HEAD, POST"


class BadRequest(UsageError):
    """The body or the query does not fit the API."""

    http_status = 422


def install(app: FastAPI) -> None:
    """Answer each kind of failure in the same shape; a traceback only goes to the log."""

    @app.exception_handler(LoraOpsError)
    def told(request: Request, error: LoraOpsError) -> JsonAnswer:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> JsonAnswer:
        return answer(_invalid(error))

    @app.exception_handler(HTTPException)
    def refused(request: Request, error: HTTPException) -> JsonAnswer:
        if error.status_code == 404:
            known = app.openapi()["paths"]
            return answer(NotFoundError(f"There is no {request.url.path}.", nearest(request.url.path, known)))
        message = f"{request.method} {request.url.path}: {error.detail}."
        return answer(UsageError(message, f"The API knows {_METHODS}."), error.status_code)

    @app.exception_handler(Exception)
    def unexpected(request: Request, error: Exception) -> JsonAnswer:
        explained = explain(error)
        if explained is not None:
            return answer(explained)
        return answer(
            LoraOpsError(
                f"{request.method} {request.url.path} failed inside lora-ops: {type(error).__name__}.",
                "This is a fault of lora-ops, not of what you asked: see the log of `lora-ops serve`.",
            )
        )


def answer(error: LoraOpsError, status: int | None = None) -> JsonAnswer:
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == 401 and status is None else None
    return JsonAnswer({"error": error.to_dict()}, status or error.http_status, headers)


def explain(error: BaseException) -> LoraOpsError | None:
    """The trainer's errors, told by their shape since its classes are not this floor's to import."""
    message, code = getattr(error, "message", None), getattr(error, "exit_code", None)
    if not isinstance(message, str) or not isinstance(code, int):
        return None
    kind = ConfigError if code == ConfigError.exit_code else LoraOpsError
    details = getattr(error, "details", None) or ()
    return kind(message, str(getattr(error, "hint", "")), [str(line) for line in details])


def _invalid(error: RequestValidationError) -> BadRequest:
    details = [_complaint(dict(each)) for each in error.errors()]
    return BadRequest("The request does not fit the API.", "See /openapi.json.", details)


def _complaint(found: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in found["loc"])
    return f"{where}: {str(found['msg']).removeprefix('Value error, ')}"
