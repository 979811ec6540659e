"""Ours, or the engine's: what serving a request can meet."""

from __future__ import annotations

from modelyard.errors.base import ServiceError


class TooManyConnections(ServiceError):
    """The bound on connections or on buffered bytes is reached."""

    code = "too_many_connections"


class InternalError(ServiceError):
    """A fault of Modelyard; the log has the details."""

    status = 500
    code = "internal_error"
    retryable = False


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


class EngineRefused(EngineError):
    """The server that a model is at does not take our key, has no such model, or is elsewhere: what is said
    of it has to be mended."""

    code = "engine_refused"
    retryable = False


class NotTranslated(EngineError):
    """The language model that was asked to translate answered, but with no text."""

    code = "not_translated"
    retryable = False


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


class DeviceLost(EngineError):
    """The answer was running on a device that is gone."""

    status = 503
    code = "device_lost"


class Fenced(EngineError):
    """The answer was running on a device when an operator fenced that at once."""

    status = 503
    code = "fenced"
