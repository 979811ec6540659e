"""One step of the scheduler: the state, the time, and the actions collected so far.

Made by `Scheduler.handle` for the length of one event; the modules that hold the transitions (`requests`,
`instances`, `files`, `orders`) take it as their first argument and are called by nobody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from modelyard.core.actions import Action, Loaded, Note, Refuse
from modelyard.core.admission import Sums, refresh
from modelyard.core.state import State, Version, Waiting


@dataclass(slots=True)
class Step:
    state: State
    sums: Sums
    now: float
    out: list[Action] = field(default_factory=list)

    def note(self, kind: str, subject: str, message: str, **fields: str | int | float) -> None:
        self.out.append(Note(kind, subject, message, tuple(fields.items())))

    def look_at(self, version: Version) -> None:
        """Have settle consider this version: its queue, and its place in line."""
        self.state.dirty[version.key] = None

    def refresh(self, version: Version) -> None:
        refresh(self.state, self.sums, version)

    def unqueue(self, waiting: Waiting) -> None:
        """Take a request out of its queue, for whatever reason."""
        version = self.state.versions[waiting.version]
        del self.state.waiting[waiting.request]
        self.state.timers.cancel(("request", waiting.request))
        version.queue.forget(waiting)
        self.state.replan |= version.key in self.state.watched
        self.refresh(version)
        self.look_at(version)

    def refuse(self, waiting: Waiting, code: str, message: str, retry_after: float | None = None) -> None:
        self.unqueue(waiting)
        self.out.append(Refuse(waiting.request, code, message, retry_after))

    def deny(self, version: Version, code: str, message: str, retry_after: float | None = None) -> None:
        """Refuse everyone who waits for this version, and whoever asked to load it."""
        for waiting in list(version.queue):
            self.refuse(waiting, code, message, retry_after)
        self.answer_ask(version, None, code, message)

    def ask(self, version: Version, *, evict: bool) -> None:
        """Have it stand in line as if a request waited for it."""
        self.state.arrivals += 1
        version.asked_since, version.asked_order = self.now, self.state.arrivals
        version.ask_evicts = evict
        self.state.replan |= version.closed_until is not None  # more may leave for it now, at the same place
        self.refresh(version)

    def answer_ask(self, version: Version, instance: str | None, code: str = "", message: str = "") -> None:
        """Answer a LoadAsked, if there is one."""
        if version.asked_since is not None:
            version.asked_since = None
            self.refresh(version)
            self.state.timers.cancel(("ask", version.key))
            self.out.append(Loaded(version.key, instance, code, message))
            self.look_at(version)
