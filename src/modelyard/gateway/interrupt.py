"""What ends, from outside, whatever a request awaits: its client's departure, a cut, a deadline.

Made by the serve loop for each request; the relay's deadlines and the scheduler's cuts come through it too.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from modelyard.core.types import OutcomeKind
from modelyard.errors import EngineDied, ModelyardError


class Interrupted(Exception):
    """What was awaited was ended from outside, with this outcome, and the error to tell if there is one."""

    def __init__(self, outcome: OutcomeKind, error: ModelyardError | None) -> None:
        super().__init__(outcome)
        self.outcome = outcome
        self.error = error


class Interrupt:
    """Ends what a request awaits, from outside: its client left, the scheduler cut it, a deadline passed.

    One per request, made in its task. `with interrupt:` stands around a wait that may be ended; the first
    reason leaves it as Interrupted. A reason that comes outside of such a block is not kept, but `departed`
    stays: the client has left.
    """

    __slots__ = ("_armed", "_reason", "_task", "departed")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._armed = False
        self._reason: Interrupted | None = None
        self.departed = False

    def depart(self) -> None:
        """The client left: nobody is there to be told anything."""
        self.departed = True
        self.end(OutcomeKind.CANCELLED)

    def cut(self, error: ModelyardError) -> None:
        """The scheduler ends the attempt."""
        self.end(cut_outcome(error), error)

    def end(self, outcome: OutcomeKind, error: ModelyardError | None = None) -> None:
        if self._armed and self._reason is None:
            self._reason = Interrupted(outcome, error)
            self._task.cancel()

    def __enter__(self) -> None:
        self._armed = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._armed = False
        reason, self._reason = self._reason, None
        if reason is not None and not self._task.uncancel():  # else the server cancelled the task as well
            try:
                raise reason from None
            finally:
                del reason  # its traceback holds this frame


def cut_outcome(error: ModelyardError) -> OutcomeKind:
    """How an attempt ended that the scheduler ended with this error."""
    return OutcomeKind.DIED if isinstance(error, EngineDied) else OutcomeKind.CUT
