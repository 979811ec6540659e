"""Another version of a model takes over: loaded beside the one that serves, or in its place.

Used by `catalog`. The name leads to it once it is ready: whoever waits for the other is led along, what runs
on that finishes. Until then nothing has changed, and whatever fails leaves it so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from modelyard.compose.live import Live
from modelyard.config import Model
from modelyard.core import events as ev
from modelyard.core.placement import fit_together
from modelyard.core.units import in_units
from modelyard.errors import NoRoomBeside
from modelyard.gateway.catalog import Step
from modelyard.gateway.names import Names
from modelyard.runtime.driver import Driver
from modelyard.runtime.entries import Entry


class Promotion:
    """One promotion; `step` is told what it is at."""

    def __init__(self, live: Live, driver: Driver, names: Names, step: Step) -> None:
        self._live = live
        self._driver = driver
        self._names = names
        self._step = step

    async def run(self, model: Model, lead: Callable[[], Awaitable[None]], *, swap: bool) -> None:
        """Have `model` take over from the version that its name leads to now; `lead` leads the name to it.
        With `swap` that one leaves first where they do not fit beside each other. Raises NoRoomBeside, and
        why it could not be fetched or loaded."""
        old = self._names.model(model.spec.model)
        served = self._names.version(model.spec.version) is not None
        new = await self._live.bring(model)
        try:
            self._step("fetching")
            await self._driver.fetch(new, lambda progress: None)
            sizes = self._too_large(old, new)
            if sizes and not swap:
                raise NoRoomBeside(
                    f"{old.spec.version} and {new.spec.version} need {sizes} and do not fit beside each "
                    "other. With swap: true one leaves before the other comes, and requests wait meanwhile.",
                    param="swap",
                )
            # Beside each other, the old one stays whoever leaves; else the new one, as soon as it is there.
            with ExitStack() as meanwhile:
                meanwhile.enter_context(self._kept(new if sizes else old, pin=True))
                if sizes:
                    meanwhile.enter_context(self._kept(old, pin=False, home=False, min_replicas=0))
                self._step("loading")
                await self._driver.load(new.spec.version)
                self._step("switching")
                await lead()
        except BaseException:
            if not served:
                await self._live.drop(new.spec.version)
            raise

    def _too_large(self, old: Entry, new: Entry) -> str:
        """The needs of both, where they can never be in memory at once and the old one is there; else
        empty."""
        state = self._driver.scheduler.state
        known = [state.versions.get(entry.spec.version) for entry in (old, new)]
        wanted = [(one.need, one.spec) for one in known if one is not None and one.need is not None]
        absent = known[0] is None or not known[0].instances
        if absent or len(wanted) < 2 or fit_together(wanted, state.ledger.devices):
            return ""
        return " and ".join(in_units(need.bytes) for need, _ in wanted)

    @contextmanager
    def _kept(self, entry: Entry, **policy: Any) -> Iterator[None]:
        """Meanwhile it has this in its policy."""
        version = entry.spec.version
        self._driver.post(ev.PolicyChanged(version, replace(entry.policy, **policy)))
        try:
            yield
        finally:
            self._driver.post(ev.PolicyChanged(version, entry.policy))
