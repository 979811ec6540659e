"""The error taxonomy: every failure a user can meet, with its status, its code and whether a retry helps.

Owned by nobody above it: every layer raises these, the gateway alone turns them into the shape of the API
that was called. The decision core names an error by its `code` (a refusal is data there); `by_code` gives
the class back. An error says what is wrong, where, and what to do, in one or two sentences.
"""

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


# -- what the client can mend: 4xx, and a 501 ----------------------------------------------------------


class RequestError(ModelyardError):
    status = 400
    kind = "invalid_request_error"


class InvalidRequest(RequestError):
    """The body, a field or a header is wrong; the message says which and where."""

    code = "invalid_request"


class ConfigRefused(RequestError):
    """The configuration is invalid, or cannot be served here: the one before stays, all of it. The message
    names each wrong value, with its file and line."""

    code = "config_refused"


class RestartNeeded(ConfigRefused):
    """The configuration changes what cannot change while the server runs: the one before stays, all of it."""

    status = 409
    code = "restart_needed"


class ContextOverflow(RequestError):
    """Prompt and answer do not fit the model's context."""

    code = "context_length_exceeded"


class Unauthorized(RequestError):
    """No key was sent, or a wrong one."""

    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"


class Forbidden(RequestError):
    """The key may not do this."""

    status = 403
    code = "forbidden"
    kind = "permission_error"


class HostNotAllowed(Forbidden):
    """The Host header names none of ours (protection against DNS rebinding)."""

    code = "host_not_allowed"


class OriginNotAllowed(Forbidden):
    """A web page of another origin called."""

    code = "origin_not_allowed"


class NotFound(RequestError):
    """There is nothing at this path."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """No model has this name; the message lists near ones."""

    code = "model_not_found"


class InstanceNotFound(NotFound):
    """No instance has this name, or it is gone."""

    code = "instance_not_found"


class VersionNotFound(NotFound):
    """The model has no such version or tag."""

    code = "version_not_found"


class NameTaken(RequestError):
    """A model or an alias has this name already; the message says whose it is."""

    status = 409
    code = "name_taken"


class OwnedByFile(RequestError):
    """A file of the configuration owns the model: it is changed there."""

    status = 409
    code = "owned_by_file"


class AliasInUse(RequestError):
    """Other names lead to the model; the message names them. `force` removes them with it."""

    status = 409
    code = "alias_in_use"


class NoRoomBeside(RequestError):
    """The new version does not fit beside the one that serves. With `swap` that one leaves first."""

    status = 409
    code = "no_room_beside"


class SpecRefused(RequestError):
    """The fields of a model are wrong; the message says which and why."""

    status = 422
    code = "spec_refused"


class RevisionMismatch(RequestError):
    """The model was changed after the revision that the change was made for: read it again."""

    status = 412
    code = "revision_mismatch"


class TaskNotFound(NotFound):
    """No task has this id any more: it ended long ago, or before the server started."""

    code = "task_not_found"


class TaskCancelled(RequestError):
    """The task was cancelled before it was done."""

    status = 409
    code = "task_cancelled"


class ModelRemoved(NotFound):
    """The model was removed while the request waited."""

    code = "model_removed"


class MethodNotAllowed(RequestError):
    """The path exists, and takes another method."""

    status = 405
    code = "method_not_allowed"

    def __init__(self, message: str, *, allowed: str = "", retry_after: float | None = None) -> None:
        """`allowed` names the methods that the path takes; HTTP wants them in the answer."""
        super().__init__(message, retry_after=retry_after)
        self.allowed = allowed


class RequestTimeout(RequestError):
    """The client was too slow to send its request."""

    status = 408
    code = "request_timeout"


class PlanNotFound(NotFound):
    """No plan has this id any more: it was carried out, or too many were made since."""

    code = "plan_not_found"


class PlanStale(RequestError):
    """What the plan rests on has changed, as the message says; nothing was done."""

    status = 409
    code = "plan_stale"


class NotRunning(RequestError):
    """The caller asked not to load a model that is not running."""

    status = 409
    code = "model_not_running"


class BodyTooLarge(RequestError):
    """The request body is over `server.limits.body`."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(RequestError):
    """The body has to be JSON."""

    status = 415
    code = "unsupported_media_type"


class UriTooLong(RequestError):
    """The request line is too long."""

    status = 414
    code = "uri_too_long"


class ExpectationFailed(RequestError):
    """The only `Expect` that is taken is `100-continue`."""

    status = 417
    code = "expectation_failed"


class HeaderTooLarge(RequestError):
    """The request's head is over `server.limits.header`."""

    status = 431
    code = "header_too_large"


class NotSupported(RequestError):
    """The model's engine does not have this endpoint."""

    status = 501
    code = "not_supported"


class TooManyTasks(RequestError):
    """As many tasks run as there may be."""

    status = 429
    code = "too_many_tasks"
    kind = "rate_limit_error"
    retryable = True


class Busy(RequestError):
    """A bound said no at arrival; nothing was started."""

    status = 429
    kind = "rate_limit_error"
    retryable = True


class QueueFull(Busy):
    """As many requests wait as `queue_bound` allows, for the model or in all."""

    code = "queue_full"


class WaitTooLong(Busy):
    """The estimated wait is longer than the request's `max_wait`."""

    code = "wait_too_long"


# -- ours, or the engine's ------------------------------------------------------------------------------


class ServiceError(ModelyardError):
    status = 503
    retryable = True


class TooManyConnections(ServiceError):
    """The bound on connections or on buffered bytes is reached."""

    code = "too_many_connections"


class InternalError(ServiceError):
    """A fault of Modelyard; the log has the details."""

    status = 500
    code = "internal_error"
    retryable = False


class RegistryUnavailable(ServiceError):
    """The registry's database is away: nothing can be changed, and what is known is served."""

    code = "registry_unavailable"


class SourceUnreachable(ServiceError):
    """The source of a model that is to be registered could not be asked."""

    status = 502
    code = "source_unreachable"


class NeverFits(ServiceError):
    """The model needs more than its devices' budget: waiting cannot help."""

    code = "never_fits"
    retryable = False


class NoMemory(ServiceError):
    """`when_full: fail` or `wait` and there is no room now."""

    code = "no_memory"


class BrokenPromise(ServiceError):
    """Admitted, yet not served within `max_wait`."""

    code = "broken_promise"


class LoadFailed(ServiceError):
    """The model could not be started; the message holds the cause and the last lines of its log."""

    code = "load_failed"


class CannotLoad(LoadFailed):
    """The engine says that it can never load this model: it does not know the file or an argument, or is
    not installed."""

    code = "cannot_load"
    retryable = False


class ShuttingDown(ServiceError):
    """The server is stopping."""

    code = "shutting_down"


class NoAlternative(ServiceError):
    """An attempt failed and there is no other instance to try."""

    status = 502
    code = "no_alternative"


class EngineError(ServiceError):
    status = 502


class EngineDied(EngineError):
    """The engine closed its connection, or its process ended, before the answer was whole."""

    code = "engine_died"


class EngineUnreachable(EngineError):
    """No connection to the engine could be made."""

    code = "engine_unreachable"


class EngineProtocol(EngineError):
    """The engine broke HTTP or SSE framing, or answered with something else than was asked for."""

    code = "engine_protocol_error"


class EngineFailed(EngineError):
    """The engine answered with an error of its own (5xx)."""

    code = "engine_failed"


class FirstByteTimeout(EngineError):
    """The engine sent nothing for `first_byte_timeout`."""

    status = 504
    code = "first_byte_timeout"


class TokenTimeout(EngineError):
    """The engine fell silent for `token_timeout` in the middle of a stream."""

    status = 504
    code = "token_timeout"


class RequestDeadline(EngineError):
    """All attempts of the request together took longer than the model's `request_timeout`."""

    status = 504
    code = "request_deadline"
    retryable = False


class CutAtDrain(EngineError):
    """The answer was running when its instance had to leave, and the drain cap passed."""

    status = 503
    code = "cut_at_drain"


class Unloaded(EngineError):
    """The answer was running when an operator unloaded its model at once; a retry would load it again."""

    status = 503
    code = "unloaded"
    retryable = False


# -- files ----------------------------------------------------------------------------------------------


class StoreError(ModelyardError):
    status = 503


class SourceNotFound(StoreError):
    """The source of a file does not exist, or has no such file."""

    code = "source_not_found"


class SourceForbidden(StoreError):
    """The source of a file gives it only to those who may have it: a licence to accept, or a token to set."""

    code = "source_forbidden"


class SourceOffline(StoreError):
    """A file is not on this machine, and `HF_HUB_OFFLINE` forbids to fetch it."""

    code = "source_offline"


class DownloadFailed(StoreError):
    """A file could not be fetched; what has come of it is kept apart, and the next try goes on from there."""

    code = "download_failed"
    retryable = True


class ChecksumMismatch(StoreError):
    """A file is not the one that was asked for, and is not used; one that was fetched was set aside."""

    code = "checksum_mismatch"


class BadGguf(StoreError):
    """The file is not a GGUF file that can be read; the message says where it goes wrong."""

    code = "bad_gguf"


class BadFile(StoreError):
    """The file is not what a model's file has to be, or not all of it, and is not used; one that was fetched
    was set aside."""

    code = "bad_file"


class QuantizeFailed(StoreError):
    """A file could not be quantized; the message says what the tool said."""

    code = "quantize_failed"


class DiskFull(StoreError):
    """There is no room for a file."""

    code = "disk_full"


# -- the client's side ----------------------------------------------------------------------------------


class ServerUnreachable(ModelyardError):
    """Nothing listens there, the connection broke, or it is no Modelyard. Never sent by a server."""

    status = 503
    code = "server_unreachable"
    retryable = True
