"""What all errors share, and the kinds that others are of."""

from __future__ import annotations

from typing import ClassVar

BY_CODE: dict[str, type[ModelyardError]] = {}


class ModelyardError(Exception):
    """A failure with a stable `code`.

    `status` is the HTTP status, `retryable` says whether the same request may succeed later (it decides
    `x-should-retry`), `kind` is OpenAI's `error.type`. `retry_after` is in seconds, None when unknown.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "error"
    kind: ClassVar[str] = "server_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after: float | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.param = param

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "code" in cls.__dict__:
            assert cls.code not in BY_CODE, f"error code {cls.code} is taken"
            BY_CODE[cls.code] = cls


def by_code(code: str, message: str, *, retry_after: float | None = None) -> ModelyardError:
    """The error with this code. Raises KeyError for an unknown code (a bug in the caller)."""
    return BY_CODE[code](message, retry_after=retry_after)


class ConfigError(ModelyardError):
    """The configuration stops the start. `path` names the value, e.g. `models.qwen.context`."""

    code = "config_error"

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class RequestError(ModelyardError):
    status = 400
    kind = "invalid_request_error"


class ServiceError(ModelyardError):
    status = 503
    retryable = True


class StoreError(ModelyardError):
    status = 503


class ServerUnreachable(ModelyardError):
    """Nothing listens there, the connection broke, or it is no Modelyard. Never sent by a server."""

    status = 503
    code = "server_unreachable"
    retryable = True
