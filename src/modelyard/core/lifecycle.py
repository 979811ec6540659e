"""The two state machines, as tables: the files of a version, and an instance.

A pair that is not in its table is illegal: `next_*` raises IllegalTransition and nothing has changed. The
diagrams in docs/design/lifecycle.md are drawn from these tables by `scripts/generate_docs.py`.
"""

from __future__ import annotations

from enum import StrEnum


class IllegalTransition(Exception):
    """This signal has no meaning in this state."""


class FilesState(StrEnum):
    ABSENT = "absent"
    FETCHING = "fetching"
    CACHED = "cached"


class FilesSignal(StrEnum):
    FETCH = "fetch"
    CACHED = "cached"
    FAILED = "failed"
    LOST = "lost"


class InstanceState(StrEnum):
    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    STOPPING = "stopping"
    SLEEPING = "sleeping"
    ASLEEP = "asleep"
    WAKING = "waking"
    RELEASING = "releasing"
    GONE = "gone"


class InstanceSignal(StrEnum):
    """Commands are imperative, reports are past."""

    DRAIN = "drain"
    STOP = "stop"
    SLEEP = "sleep"
    WAKE = "wake"
    ANSWERED = "answered"
    READIED = "readied"
    FAILED = "failed"
    SLEPT = "slept"
    EXITED = "exited"
    RELEASED = "released"


_F, _FS = FilesState, FilesSignal
FILES: dict[tuple[FilesState, FilesSignal], FilesState] = {
    (_F.ABSENT, _FS.FETCH): _F.FETCHING,
    (_F.ABSENT, _FS.CACHED): _F.CACHED,
    (_F.FETCHING, _FS.CACHED): _F.CACHED,
    (_F.FETCHING, _FS.FAILED): _F.ABSENT,
    (_F.CACHED, _FS.LOST): _F.ABSENT,
}

_I, _S = InstanceState, InstanceSignal
INSTANCE: dict[tuple[InstanceState, InstanceSignal], InstanceState] = {
    (_I.STARTING, _S.ANSWERED): _I.WARMING,
    (_I.STARTING, _S.READIED): _I.READY,
    (_I.WARMING, _S.READIED): _I.READY,
    (_I.READY, _S.DRAIN): _I.DRAINING,
    (_I.DRAINING, _S.STOP): _I.STOPPING,
    (_I.DRAINING, _S.SLEEP): _I.SLEEPING,
    (_I.SLEEPING, _S.SLEPT): _I.ASLEEP,
    (_I.ASLEEP, _S.WAKE): _I.WAKING,
    (_I.WAKING, _S.READIED): _I.READY,
    (_I.STARTING, _S.STOP): _I.STOPPING,
    (_I.WARMING, _S.STOP): _I.STOPPING,
    (_I.SLEEPING, _S.STOP): _I.STOPPING,
    (_I.ASLEEP, _S.STOP): _I.STOPPING,
    (_I.WAKING, _S.STOP): _I.STOPPING,
    (_I.STOPPING, _S.EXITED): _I.RELEASING,
    # Failures lead to releasing, from wherever they strike.
    (_I.STARTING, _S.FAILED): _I.RELEASING,
    (_I.WARMING, _S.FAILED): _I.RELEASING,
    (_I.READY, _S.FAILED): _I.RELEASING,
    (_I.DRAINING, _S.FAILED): _I.RELEASING,
    (_I.SLEEPING, _S.FAILED): _I.RELEASING,
    (_I.ASLEEP, _S.FAILED): _I.RELEASING,
    (_I.WAKING, _S.FAILED): _I.RELEASING,
    (_I.STARTING, _S.EXITED): _I.RELEASING,
    (_I.WARMING, _S.EXITED): _I.RELEASING,
    (_I.READY, _S.EXITED): _I.RELEASING,
    (_I.DRAINING, _S.EXITED): _I.RELEASING,
    (_I.SLEEPING, _S.EXITED): _I.RELEASING,
    (_I.ASLEEP, _S.EXITED): _I.RELEASING,
    (_I.WAKING, _S.EXITED): _I.RELEASING,
    # Only Released frees the memory.
    (_I.STOPPING, _S.RELEASED): _I.GONE,
    (_I.RELEASING, _S.RELEASED): _I.GONE,
}


def next_files(state: FilesState, signal: FilesSignal) -> FilesState:
    """The files' state after `signal`. Raises IllegalTransition."""
    try:
        return FILES[state, signal]
    except KeyError:
        raise IllegalTransition(f"files: {signal} in {state}") from None


def next_instance(state: InstanceState, signal: InstanceSignal) -> InstanceState:
    """The instance's state after `signal`. Raises IllegalTransition."""
    try:
        return INSTANCE[state, signal]
    except KeyError:
        raise IllegalTransition(f"instance: {signal} in {state}") from None
