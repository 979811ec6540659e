"""Models as data, and long work on them."""

from __future__ import annotations

from typing import Self

from modelyard.errors.base import RequestError, ServiceError
from modelyard.errors.requests import NotFound


class VersionNotFound(NotFound):
    """The model has no such version or tag."""

    code = "version_not_found"


class NameTaken(RequestError):
    """A model or an alias has this name already; the message says whose it is."""

    status = 409
    code = "name_taken"


class OwnedByFile(RequestError):
    """A file of the configuration owns the model, key or engine profile: it is changed there."""

    status = 409
    code = "owned_by_file"

    @classmethod
    def at(cls, name: str, place: str = "") -> Self:
        """`place` is the file and line, where they are known."""
        where = f" ({place})" if place else ""
        return cls(f"{name} belongs to the configuration's file{where}: change it there", param="name")


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


class KeyNotFound(NotFound):
    """No key has this name."""

    code = "key_not_found"


class WouldLockOut(RequestError):
    """Nobody could make changes any more: of keys, one has the scope admin and does not expire."""

    status = 409
    code = "would_lock_out"


class EngineNotFound(NotFound):
    """No engine profile has this name."""

    code = "engine_not_found"


class EngineInUse(RequestError):
    """Registered models are run with this engine profile; the message names one."""

    status = 409
    code = "engine_in_use"

    @classmethod
    def by(cls, profile: str, model: str, version: int) -> Self:
        message = f"version {version} of {model} is run with {profile}; remove that model first"
        return cls(message, param="name")


class RevisionMismatch(RequestError):
    """What is to be changed has another revision than the change was made for: read it again."""

    status = 412
    code = "revision_mismatch"


class TaskNotFound(NotFound):
    """No task has this id any more: it ended long ago, or before the server started."""

    code = "task_not_found"


class TaskCancelled(RequestError):
    """The task was cancelled before it was done."""

    status = 409
    code = "task_cancelled"


class TooManyTasks(RequestError):
    """As many tasks run as there may be."""

    status = 429
    code = "too_many_tasks"
    kind = "rate_limit_error"
    retryable = True


class RegistryUnavailable(ServiceError):
    """The registry's database is away: nothing can be changed, and what is known is served."""

    code = "registry_unavailable"


class SourceUnreachable(ServiceError):
    """The source of a model that is to be registered could not be asked."""

    status = 502
    code = "source_unreachable"
