"""What is told of the cache, as JSON: what lies in it, what was pruned, what came of a verification.

Used by the control surface of a running server and by the command line on a folder: both tell the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from modelyard.errors import InvalidRequest, NotFound
from modelyard.store.cache import Store
from modelyard.store.shelf import Item
from modelyard.store.source import shown
from modelyard.store.verify import Verdict

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prune:
    """What is to go: named files (sources, paths, digests, models), or those that were not used (unfinished
    ones: written) for `older` seconds, or all that are not in use (`everything`, with what was set aside).
    `sources` are those of models among the names; else a model is known by what was started with it."""

    files: tuple[str, ...] = ()
    older: float | None = None
    everything: bool = False
    dry_run: bool = False
    sources: Mapping[str, Collection[str]] = field(default_factory=dict)


def listing(store: Store) -> Json:
    """Costs a few stats for each file."""
    items = store.shelf.items()
    return {
        "bytes": sum(item.size for item in items if item.blob),
        "quota": store.shelf.quota or None,
        "quarantined": store.shelf.empty_quarantine(dry_run=True),
        "files": [file_of(item) for item in reversed(items)],
    }


def prune(store: Store, order: Prune) -> Json:
    """Raises NotFound for a name that means no file, InvalidRequest for an order that names nothing."""
    went = store.shelf.prune(_chosen(store, order), dry_run=order.dry_run)
    removed = [item for item, gone in went if gone]
    aside = store.shelf.empty_quarantine(dry_run=order.dry_run) if order.everything else 0
    return {
        "dry_run": order.dry_run,
        "bytes": aside + sum(item.size for item in removed if item.blob),
        "removed": [file_of(item) for item in removed],
        "in_use": [file_of(item) for item, gone in went if not gone],
    }


def verified(verdicts: Iterable[Verdict]) -> Json:
    files = [{**file_of(one.item), "problem": one.problem} for one in verdicts]
    return {"files": files, "bad": sum(bool(one["problem"]) for one in files)}


def file_of(item: Item) -> Json:
    return {
        "digest": item.digest,
        "path": str(item.path),
        "bytes": item.size,
        "in_cache": item.blob,
        "kind": item.kind,
        "sources": [shown(source) for source in item.sources],
        "used": item.used,
        "models": list(item.users),
        "in_use": item.in_use,
        "unfinished": {"done": left.done, "total": left.total} if (left := item.unfinished) else None,
    }


def _chosen(store: Store, order: Prune) -> list[Item]:
    if sum((bool(order.files), order.older is not None, order.everything)) != 1:
        raise InvalidRequest(
            "Say what is to go: named files, those not used for a time (`older`), or all that are not in use "
            "(`all`); one of these."
        )
    if not order.files:
        return store.shelf.unused(older=order.older or 0.0)
    chosen: dict[str, Item] = {}
    found = store.shelf.matching([*order.files, *chain.from_iterable(order.sources.values())])
    for name in order.files:
        items = [*found[name], *chain.from_iterable(found[one] for one in order.sources.get(name, ()))]
        if not items:
            raise NotFound(f"The cache has no file {name[:200]!r}; `modelyard cache ls` lists what it has.")
        chosen |= {str(item.path): item for item in items}
    return list(chosen.values())
