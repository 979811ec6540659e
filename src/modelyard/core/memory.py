"""The ledger: who holds how many bytes of which device, what is foreign, what is free.

Mutated by the scheduler alone. Reservations are made before an instance starts and freed only when its
memory was seen to be back (`Released`). Invariant per device: reserved ≤ budget.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from modelyard.core.types import Charge, Device, Placement, Share

NOBODY: frozenset[str] = frozenset()


class DeviceLedger:
    """The account of one device, in bytes.

    reserved: what instances hold by agreement: their own bytes, and each mapped file once.
    excess:   what they were observed to use beyond that.
    foreign:  what the device says is used by nobody of ours.
    lost:     why it is taken to be gone, `fenced`: why an operator wants nothing there; empty otherwise.
    """

    __slots__ = ("_held", "_mapped", "device", "excess", "fenced", "foreign", "lost", "reserved")

    def __init__(self, device: Device) -> None:
        self.device = device
        self.foreign = 0
        self.reserved = 0
        self.excess = 0
        self.lost = self.fenced = ""
        self._held: dict[str, tuple[int, int]] = {}  # own bytes of each instance, reserved and observed
        self._mapped: dict[str, tuple[int, set[str]]] = {}

    def copy(self) -> DeviceLedger:
        copied = DeviceLedger(self.device)
        copied.foreign, copied.reserved, copied.excess = self.foreign, self.reserved, self.excess
        copied.lost, copied.fenced = self.lost, self.fenced
        copied._held = self._held.copy()
        copied._mapped = {digest: (size, users.copy()) for digest, (size, users) in self._mapped.items()}
        return copied

    @property
    def free(self) -> int:
        """Bytes that a new reservation may take now; negative when a foreigner took what was promised."""
        limit = min(self.device.budget, self.device.total - self.device.reserve - self.foreign)
        return limit - self.reserved - self.excess

    @property
    def closed(self) -> str:
        """Why nothing may be placed here now; empty when it may."""
        return f"lost: {self.lost}" if self.lost else f"fenced: {self.fenced}" if self.fenced else ""

    @property
    def crowded(self) -> bool:
        """Whether foreigners took what was promised to instances."""
        return self.reserved > self.device.total - self.device.reserve - self.foreign

    @property
    def observed(self) -> int:
        """Own bytes of all instances as last measured."""
        return sum(observed for _, observed in self._held.values())

    def own(self, instance: str) -> int:
        """Own bytes that `instance` holds here, by agreement or as observed, whichever is more."""
        return max(self.holds(instance))

    def holds(self, instance: str) -> tuple[int, int]:
        """(reserved, observed) own bytes of `instance` here."""
        return self._held.get(instance, (0, 0))

    def holders(self) -> list[str]:
        return list(self._held)

    def cost(self, share: Share | Charge, gone: Collection[str] = NOBODY) -> int:
        """Bytes that taking `share` here would add once the instances `gone` have left: a file that somebody
        else maps costs nothing more."""
        if not share.mapped:
            return share.bytes
        return share.bytes + sum(
            size for digest, size in share.mapped.items() if self._only(self._mapped.get(digest), gone)
        )

    def files_back(self, gone: Collection[str]) -> int:
        """Bytes of the mapped files that nobody would map any more if the instances `gone` had left."""
        return sum(entry[0] for entry in self._mapped.values() if self._only(entry, gone))

    @staticmethod
    def _only(entry: tuple[int, set[str]] | None, gone: Collection[str]) -> bool:
        return entry is None or all(user in gone for user in entry[1])

    def reserve(self, instance: str, charge: Charge) -> None:
        """Book `charge`. Raises ValueError when it would pass the budget, or is booked already."""
        new = {digest: size for digest, size in charge.mapped.items() if digest not in self._mapped}
        if instance in self._held:
            raise ValueError(f"{instance} holds memory on {self.device.id} already")
        if self.reserved + charge.bytes + sum(new.values()) > self.device.budget:
            raise ValueError(f"{instance} would pass the budget of {self.device.id}")
        self._book(instance, charge.bytes, 0)
        self.reserved += sum(new.values())
        for digest, size in charge.mapped.items():
            self._mapped.setdefault(digest, (size, set()))[1].add(instance)

    def fits(self, instance: str, charge: Charge) -> bool:
        """Whether there is room for `charge` in place of what `instance` holds."""
        cost = self.cost(charge, {instance}) - self.files_back({instance})
        return self.promises(instance, charge) and cost - self.own(instance) <= max(0, self.free)

    def promises(self, instance: str, charge: Charge) -> bool:
        """Whether `charge` in place of what `instance` holds is within the budget."""
        cost = self.cost(charge, {instance}) - self.files_back({instance})
        return self.reserved + cost - self.holds(instance)[0] <= self.device.budget

    def free_up(self, instance: str) -> None:
        """Forget `instance`: its own bytes, and each file that nobody else maps. Idempotent."""
        self._book(instance, 0, 0)
        del self._held[instance]
        for digest, (size, users) in list(self._mapped.items()):
            users.discard(instance)
            if not users:
                del self._mapped[digest]
                self.reserved -= size

    def observe(self, instance: str, own: int) -> None:
        """Its own bytes were measured. Ignored for an instance that holds nothing here."""
        if instance in self._held:
            self._book(instance, self._held[instance][0], own)

    def shrink(self, instance: str, own: int) -> None:
        """Lower a reservation that was a guess to `own` bytes; it never grows here. Ignored for an instance
        that holds nothing here."""
        reserved, observed = self.holds(instance)
        if own < reserved:
            self._book(instance, own, observed)

    def seen(self, total: int, free: int, ours: Mapping[str, int], settled: Collection[str] = NOBODY) -> None:
        """Take the device's own truth: what is used and not ours is foreign. A holder that is not in `ours`
        could not be measured: it is taken to use what it reserved, or, unless it is among the `settled`
        (loaded, and not leaving), as much of that as came since the last look."""
        for instance, own in ours.items():
            self.observe(instance, own)
        fixed = moving = 0
        for instance, (reserved, _) in self._held.items():
            if instance in settled and instance not in ours:
                fixed += reserved
            elif instance not in ours:
                moving += reserved
        unexplained = max(0, total - free - sum(ours.values()) - fixed)
        self.foreign = max(unexplained - moving, min(self.foreign, unexplained))

    def _book(self, instance: str, reserved: int, observed: int) -> None:
        """Have `instance` hold these own bytes, whatever it held before."""
        before, seen = self.holds(instance)
        self.reserved += reserved - before
        self.excess += max(0, observed - reserved) - max(0, seen - before)
        self._held[instance] = reserved, observed


class Ledger:
    """The accounts of all devices."""

    def __init__(self) -> None:
        self.devices: dict[str, DeviceLedger] = {}

    def copy(self) -> Ledger:
        copied = Ledger()
        copied.devices = {device: account.copy() for device, account in self.devices.items()}
        return copied

    def add(self, device: Device) -> None:
        """Open an account. A device that is known already keeps what is booked on it."""
        account = self.devices.get(device.id)
        if account is None:
            self.devices[device.id] = DeviceLedger(device)
        else:
            account.device = replace(device, budget=max(device.budget, account.reserved))

    def reserve(self, instance: str, placement: Placement) -> None:
        """Book a placement on all its devices, or on none. Raises ValueError."""
        done: list[str] = []
        try:
            for charge in placement:
                self.devices[charge.device].reserve(instance, charge)
                done.append(charge.device)
        except ValueError:
            for device in done:
                self.devices[device].free_up(instance)
            raise

    def free_up(self, instance: str) -> None:
        for account in self.devices.values():
            account.free_up(instance)

    def fits(self, instance: str, placement: Placement) -> bool:
        """Whether there is room for `placement` in place of what `instance` holds."""
        accounts = self.devices
        return all(
            charge.device in accounts and accounts[charge.device].fits(instance, charge)
            for charge in placement
        )

    def rebook(self, instance: str, placement: Placement) -> None:
        """Have `instance` hold `placement`, for which there is room (`fits`), in place of what it holds.
        Raises ValueError, and changes nothing, where that would pass a budget."""
        for charge in placement:
            if not self.devices[charge.device].promises(instance, charge):
                raise ValueError(f"{instance} would pass the budget of {charge.device}")
        seen = {device: account.holds(instance)[1] for device, account in self.devices.items()}
        self.free_up(instance)
        self.reserve(instance, placement)
        self.observe(instance, seen)

    def observe(self, instance: str, own: Mapping[str, int]) -> None:
        for device, size in own.items():
            if device in self.devices:
                self.devices[device].observe(instance, size)
