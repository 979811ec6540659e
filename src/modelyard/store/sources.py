"""The sources that a store has, as the configuration sets them. Used by compose, and as `cache`'s default."""

from __future__ import annotations

from modelyard.config.values import StoreSetting
from modelyard.store.addresses import Guard
from modelyard.store.https import WebFiles
from modelyard.store.hub import HubFiles
from modelyard.store.local import LocalFiles
from modelyard.store.objects import ObjectFiles
from modelyard.store.ollama import OllamaModels
from modelyard.store.pace import Bandwidth, Pace
from modelyard.store.pypi import PythonPackages
from modelyard.store.source import Source


def sources_of(setting: StoreSetting) -> tuple[Source, ...]:
    """All of them; they share one bandwidth."""
    pace = Pace(setting.connections, Bandwidth(setting.bandwidth))
    guard = Guard(setting.allow_private)
    return (
        LocalFiles(),
        PythonPackages(),
        HubFiles(pace=pace),
        WebFiles(guard, pace),
        ObjectFiles(setting.s3, pace),
        OllamaModels(guard, pace),
    )
