"""The `devices:` section → settings. Used by `build`."""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.config.problems import Refuse
from modelyard.config.schema import DeviceSection
from modelyard.config.values import DeviceSetting


def device_settings(sections: Mapping[str, DeviceSection], refuse: Refuse) -> dict[str, DeviceSetting]:
    """The settings by device."""
    settings = {}
    for name, section in sections.items():
        path = f"devices.{name}"
        if section.kind == "declared" and name == "ram":
            refuse(f"{path}.kind", "host memory is always discovered; set `memory` to use less of it")
        elif section.kind == "declared" and section.memory is None:
            refuse(f"{path}.memory", "is required for a declared device")
        if section.memory is not None and (section.reserve or 0) >= section.memory:
            refuse(f"{path}.reserve", "leaves nothing of the device's memory")
        if section.scale is not None and section.kind != "declared":
            refuse(f"{path}.scale", "is of a declared device alone")
        settings[name] = DeviceSetting(
            section.memory, section.reserve, section.kind, section.group or "", section.scale or 1
        )
    return settings
