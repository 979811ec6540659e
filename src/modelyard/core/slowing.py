"""How much loads slow each other down, learned from how long they take beside others.

Models that are read from one drive, or through one link, are not there sooner when all of them are started at
once, and whoever is put out for the last of them could have served meanwhile. Part of the scheduler:
`instances` tells of each load, capacity asks.
"""

from __future__ import annotations

from modelyard.core.state import STARTING, Instance, State

MATTERS = 0.2  # from which on swaps wait for loads
AT_ONCE = 2  # loads of those who came first: one is read while the other's process starts
_WEIGHT = 0.2


def beside(state: State, instance: Instance) -> int:
    """How many others are loading on a device that it uses."""
    devices = {charge.device for charge in instance.placement}
    return sum(
        not devices.isdisjoint(charge.device for charge in other.placement)
        for other in state.instances.values()
        if other.state in STARTING and other is not instance
    )


def learn(state: State, instance: Instance, seconds: float) -> None:
    """It loaded in so many seconds, and is ready."""
    version, others = instance.version, (instance.beside + beside(state, instance)) / 2
    alone = seconds / (1.0 + max(0.0, state.slowing) * others)
    if not version.alone:
        version.alone = alone
        return
    if others:
        seen = (seconds / version.alone - 1.0) / others
        state.slowing += _WEIGHT * (min(max(seen, -1.0), 2.0) - state.slowing)
    version.alone += 0.5 / (1.0 + others) ** 2 * (alone - version.alone)
