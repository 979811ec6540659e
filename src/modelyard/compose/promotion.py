"""Another version of a model takes over: loaded beside the one that serves, or in its place.

Used by `catalog`. Whoever waits for the one that goes is led to the other; what runs on it finishes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

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

    async def run(
        self,
        model: Model,
        forth: Callable[[], Awaitable[None]],
        back: Callable[[], Awaitable[None]],
        *,
        swap: bool,
    ) -> None:
        """Have `model` take over from the version that its name leads to now; `forth` leads the name to it,
        `back` to the other again. With `swap` that one leaves first where they do not fit beside each other.
        Raises NoRoomBeside, and why it could not be fetched or loaded; then the name leads where it did."""
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
            if not sizes:
                await self._load_beside(old, new)
            self._step("switching")
            await forth()
        except BaseException:
            if not served:
                await self._live.drop(new.spec.version)
            raise
        if sizes:
            await self._load_instead(new, back)

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

    async def _load_instead(self, new: Entry, back: Callable[[], Awaitable[None]]) -> None:
        """Load the new one, for which the old one leaves; who waits goes on waiting."""
        self._step("loading")
        try:
            await self._driver.load(new.spec.version)
        except BaseException:
            self._step("switching back")
            await back()
            raise

    async def _load_beside(self, old: Entry, new: Entry) -> None:
        """Load the new one; whoever leaves for it, it is not the old one."""
        self._step("loading")
        version = old.spec.version
        self._driver.post(ev.PolicyChanged(version, replace(old.policy, pin=True)))
        try:
            await self._driver.load(new.spec.version)
        finally:
            self._driver.post(ev.PolicyChanged(version, old.policy))
