"""Transitions of a version's files: cached, not to be had, lost. Part of the scheduler."""

from __future__ import annotations

from modelyard.core import failures, instances
from modelyard.core.events import Cached, FetchFailed, FilesLost
from modelyard.core.lifecycle import FilesSignal, FilesState, next_files
from modelyard.core.state import Version
from modelyard.core.step import Step


def cached(step: Step, event: Cached) -> None:
    """They lie in the cache: what they need is known."""
    version = step.state.versions.get(event.version)
    if version is not None and version.files is not FilesState.CACHED:
        version.files = next_files(version.files, FilesSignal.CACHED)
        instances.set_need(step, version, event.need)


def fetch_failed(step: Step, event: FetchFailed) -> None:
    """Whoever waits is told, and it is tried again later."""
    version = step.state.versions.get(event.version)
    if version is not None and version.files is FilesState.FETCHING:
        version.files = next_files(version.files, FilesSignal.FAILED)
        _tell(step, version, event)


def lost(step: Step, event: FilesLost) -> None:
    """They are fetched again for whoever waits, unless there is something to tell."""
    version = step.state.versions.get(event.version)
    if version is not None and version.files is FilesState.CACHED:
        version.files = next_files(version.files, FilesSignal.LOST)
        if event.code:
            _tell(step, version, event)
        step.look_at(version)
        step.state.replan = True


def _tell(step: Step, version: Version, event: FetchFailed | FilesLost) -> None:
    message = f"{version.spec.model}: {event.detail}"
    failures.back_off(step, version, event.code, message, permanent=True, starting=False, foreign=False)
    step.note("failed", version.key, message, cause=event.code)
