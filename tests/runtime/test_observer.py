"""What an instance is seen to hold."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from core.yard import spec
from modelyard.core.events import Event, Learned
from modelyard.core.state import Instance, Version
from modelyard.core.types import Charge, Device, DeviceKind, Need, Policy, Share
from modelyard.runtime.devices import Seen
from modelyard.runtime.footprints import Footprints
from modelyard.runtime.observer import Observer


@pytest.mark.parametrize("own", [None, 30])
async def test_only_what_is_measured_of_it(own: int | None) -> None:
    """On a GPU that does not tell of processes, what is in use is not compared with what was reserved."""
    seen = [Seen("gpu0", 100, 60, {} if own is None else {"a-1": own}), Seen("ram", 100, 50, {"a-1": 5})]
    devices: Any = SimpleNamespace(
        all=[Device("ram", DeviceKind.RAM, 100, 100), Device("gpu0", DeviceKind.CUDA, 100, 100)],
        look=lambda pids: seen,
    )
    launcher: Any = SimpleNamespace(pids=lambda name: [1], held=lambda name: None)
    model = spec("a")
    version = Version(model, Policy(), model.version)
    instance = Instance("a-1", version, (Charge("gpu0", 90), Charge("ram", 10)), 0.0, "")
    observer = Observer(devices, launcher, Footprints(), lambda event: None, lambda: [instance])
    measured = {"ram": 5} if own is None else {"gpu0": own, "ram": 5}
    assert await observer.measure("a-1") == measured
    most = dict.fromkeys(measured, 40)
    deadline = asyncio.get_running_loop().time() + 10
    assert await observer.given_back(instance, most, deadline) == measured


@pytest.mark.parametrize(("own", "taken"), [(24, 94), (29, 99), (40, 107), (129, 129), (0, 107), (155, 150)])
def test_a_look_before_its_work_says_nothing_of_what_that_takes(own: int, taken: int) -> None:
    """Of 107 bytes 70 are for batches: one that is idle holds the others alone. What batches took is never
    more than the device may give, or there would be no other start."""
    model = spec("a", devices=("ram",))
    need = Need((Share("ram", 107, later=70),))
    entry: Any = SimpleNamespace(
        spec=model, files={}, engine=SimpleNamespace(need=lambda *_: need, rungs=lambda *_: ())
    )
    devices: Any = SimpleNamespace(all=[Device("ram", DeviceKind.RAM, 1000, 150)])
    launcher: Any = SimpleNamespace()
    told: list[Event] = []
    observer = Observer(devices, launcher, Footprints(), told.append, list)
    version = Version(model, Policy(), model.version, need=need)
    instance = Instance("a-1", version, (Charge("ram", 107),), 0.0, "")
    observer.keep(entry, instance, {"ram": own}, load_seconds=1.0)
    learned = [event.need for event in told if isinstance(event, Learned)]
    assert [one.bytes for one in learned] == [taken]
