"""What the client can mend: 4xx, and a 501."""

from __future__ import annotations

from modelyard.errors.base import RequestError


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


class UnsupportedLanguage(RequestError):
    """The text is no code of a language, or nothing here translates the language or the pair; the message
    names those that are translated."""

    code = "unsupported_language"


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


class RateLimited(Busy):
    """What serves the model takes no more requests for now; `Retry-After` is its own."""

    code = "rate_limited"
