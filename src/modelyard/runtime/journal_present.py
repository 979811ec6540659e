"""What there is, told again at the beginning of each file of the journal: the older files go, and what was
told once, when the server started, goes with them.

Filled by the encoder with the records that it makes, written by the journal's writer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from modelyard.runtime.journal_records import Fields, Kind


class Present:
    """Devices, and models with where they were placed last and how long that load took."""

    def __init__(self) -> None:
        self._devices: dict[str, Fields] = {}
        self._models: dict[str, Fields] = {}  # by version, those that were started last at the end
        self._take: Mapping[object, Callable[[Any], None]] = {
            Kind.DEVICE: self._device,
            Kind.MODEL_ADDED: self._added,
            Kind.MODEL_REMOVED: self._removed,
            Kind.START: self._started,
            Kind.READY: self._ready,
        }

    def see(self, record: Fields) -> None:
        """Note what a record of the journal changes."""
        if (take := self._take.get(record["kind"])) is not None:
            take(record)

    def told(self, at: float) -> Callable[[int], list[bytes]]:
        """Makes records of what there is now, for a moment of the clock: so many bytes at most, the most
        useful first. To be called from any thread."""
        devices, models = list(self._devices.values()), list(self._models.values())

        def lines(room: int) -> list[bytes]:
            made = []
            for fields in (*devices, *reversed(models)):
                record = {"t": round(at, 4), **fields, "kind": Kind.SNAPSHOT}
                line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
                room -= len(line)
                if room < 0:
                    break
                made.append(line)
            return made

        return lines

    def _device(self, record: Fields) -> None:
        self._devices[str(record["device"])] = record

    def _added(self, record: Fields) -> None:
        self._models[str(record["version"])] = record

    def _removed(self, record: Fields) -> None:
        self._models.pop(str(record["version"]), None)

    def _started(self, record: Fields) -> None:
        version = str(record["version"])
        if (known := self._models.pop(version, None)) is not None:
            self._models[version] = {**known, "placement": record["placement"]}

    def _ready(self, record: Fields) -> None:
        version = str(record.get("version", ""))
        if (known := self._models.get(version)) is not None and "seconds" in record and "rung" not in record:
            self._models[version] = {**known, "load": record["seconds"]}
