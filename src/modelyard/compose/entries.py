"""Models as they are run on this machine, and whether they ever fit on its devices.

Used when a yard is built and when its configuration changes.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec

from modelyard.compose.told import told
from modelyard.config import Config, ConfigErrors, Model, Problem
from modelyard.core.memory import DeviceLedger
from modelyard.core.placement import fit_together, never_fits
from modelyard.core.types import DeviceKind, Need, Spec
from modelyard.core.units import in_units
from modelyard.engines import registry
from modelyard.engines.base import Engine, Profile
from modelyard.runtime.devices import Devices
from modelyard.runtime.entries import Entry
from modelyard.store import Store, Terms, quantize, split
from modelyard.store.local import absent


def entries_of(config: Config, models: Iterable[Model], devices: Devices, store: Store) -> dict[str, Entry]:
    """These models, by name. Raises ConfigErrors with what is wrong with any of them. Reads from the disk."""
    entries: dict[str, Entry] = {}
    problems: list[Problem] = []
    profiles: dict[str, Profile] = {}  # with what was found of theirs, for which PATH is walked once
    for model in models:
        name = model.spec.engine
        if name not in profiles:
            profile = config.profiles[name]
            profiles[name] = replace(profile, found=found(registry.load()[profile.type]))
        try:
            entries[model.spec.model] = _entry(config, model, profiles[name], devices, store)
        except ConfigErrors as error:
            problems += error.problems
    if problems:
        raise ConfigErrors(problems)
    return entries


def found(*engines: Engine, programs: Iterable[str] = ()) -> dict[str, str]:
    """Where what the engines may need lies on this machine: programs on PATH, and Python modules; and these
    programs. What is not there is left out."""
    names = {*programs, *(program for engine in engines for program in engine.programs)}
    lying = {program: shutil.which(program) for program in names}
    for module in {module for engine in engines for module in engine.modules}:
        spec = find_spec(module)
        lying[module] = spec.origin if spec is not None else None
    return {name: where for name, where in lying.items() if where is not None}


def check_placements(
    config: Config, entries: Collection[Entry], devices: Mapping[str, DeviceLedger], new: Collection[str]
) -> None:
    """Raise ConfigErrors for models that no device can ever hold, and for those that have to stay and do
    not fit together, as far as their files are on this machine. `entries` are all that there will be, `new`
    names those that may be to blame."""
    problems = []
    for entry in entries:
        if entry.spec.model not in new or entry.estimate is None:
            continue
        never = never_fits(entry.estimate, entry.spec, devices)
        if never is not None:
            message = f"needs {in_units(never.need)} and can never fit: {never.reason}"
            problems.append((f"models.{entry.spec.model}", message))
    if not problems:
        problems = _kept_in_vain(entries, new, devices)
    if problems:
        raise config.failure(problems)


def _entry(config: Config, model: Model, profile: Profile, devices: Devices, store: Store) -> Entry:
    """The model as it is run here. Raises ConfigErrors with the path of what cannot be."""
    engine = registry.load()[profile.type]
    if unrunnable := _unrunnable(profile.program):
        raise config.failure([(f"engines.{profile.name}.program", unrunnable)])
    spec = _on_devices(model.spec, profile, devices)
    if missing := engine.missing(replace(profile, defaults=spec.parameters)):
        raise config.failure([(f"{model.path}.engine", f"{engine.type} {missing}")])
    spec, untold = told(spec, engine)
    problems = [
        (f"{model.path}.{path}", message) for path, message in untold or engine.problems(spec, profile)
    ]
    problems += _misplaced(model, spec, devices)
    problems += _unparallel(model, spec, engine)
    problems += _bad_sources(model, spec, engine, store)
    if spec.quantize and (unmade := _unmade(spec, engine, store)):
        problems.append((f"{model.path}.quantize", unmade))
    if problems:
        raise config.failure(problems)
    return Entry(spec, model.policy, engine, profile, price=model.price)


def _unrunnable(program: str) -> str:
    """Why this program cannot be run here; empty when it can, and for none."""
    if not program or shutil.which(program) is not None:
        return ""
    if "/" not in program:
        return f"there is no {program} on PATH; install it, or name its path"
    if not os.path.exists(program):
        return f"there is no {program}; name a program that is there, or leave this out"
    return f"{program} is not a file that this user may execute; make it one, or name another"


def _kept_in_vain(
    entries: Iterable[Entry], new: Collection[str], devices: Mapping[str, DeviceLedger]
) -> list[tuple[str, str]]:
    """Models that are always to be there, yet do not fit together: the fewest of them, with their sums."""
    kept: dict[str, tuple[int, Need, Spec]] = {}
    for entry in entries:
        copies = max(entry.policy.min_replicas, int(entry.policy.pin))
        if copies and entry.estimate is not None:
            kept[entry.spec.model] = (copies, entry.estimate, entry.spec)

    def fits(names: Iterable[str]) -> bool:
        return fit_together([kept[name][1:] for name in names for _ in range(kept[name][0])], devices)

    if fits(kept):
        return []
    clash = list(kept)
    for name in kept:
        if not fits(fewer := [other for other in clash if other != name]):
            clash = fewer
    if not any(name in new for name in clash):
        return []  # known before, and not this one's doing
    sums = {name: kept[name][0] * kept[name][1].bytes for name in clash}
    parts = " + ".join(f"{name} {in_units(size)}" for name, size in sums.items())
    budgets = ", ".join(f"{name} {in_units(account.device.budget)}" for name, account in devices.items())
    message = (
        "has to stay loaded (pin, min_replicas), and what has to does not fit together: "
        f"{parts} = {in_units(sum(sums.values()))}; the budgets are {budgets}"
    )
    return [(f"models.{name}", message) for name in clash]


def _on_devices(spec: Spec, profile: Profile, devices: Devices) -> Spec:
    """A spec that names no device may use any accelerator, or host RAM where there is none for it."""
    chosen = spec.devices or profile.devices
    if not chosen and all(
        device.kind is DeviceKind.RAM or device.exclusive not in ("", profile.name) for device in devices.all
    ):
        chosen = ("ram",)
    return replace(spec, devices=chosen)


def _misplaced(model: Model, spec: Spec, devices: Devices) -> list[tuple[str, str]]:
    known = {device.id: device.exclusive for device in devices.all}
    return [
        (f"{model.path}.devices", f"there is no device {name!r}; there are {', '.join(sorted(known))}")
        for name in spec.devices
        if name not in known
    ] + [
        (f"{model.path}.devices", f"{name} is for the models of the engine profile '{owner}' alone")
        for name in spec.devices
        if (owner := known.get(name)) and owner != spec.engine
    ]


def _unparallel(model: Model, spec: Spec, engine: Engine) -> list[tuple[str, str]]:
    """Kinds of parallelism that the engine has not, or its devices are too few for."""
    asked = {name: count for name, count in asdict(spec.parallel).items() if count > 1}
    problems = [
        (f"{model.path}.parallel.{name}", f"the engine {engine.type} cannot: leave it out, or name another")
        for name in asked
        if name not in engine.parallel
    ]
    named = [device for device in spec.devices if device != "ram"]
    if spec.devices and len(named) < spec.parallel.devices > 1:
        message = f"takes {spec.parallel.devices} devices, and it may use {', '.join(named) or 'none'}"
        problems.append((f"{model.path}.parallel", message))
    return problems


def _unmade(spec: Spec, engine: Engine, store: Store) -> str | None:
    """Why its file cannot be quantized here; None when it can."""
    if "model" not in engine.sources(spec):
        return f"is of a model's file, and the engine {engine.type} has none"
    if store.is_folder(spec.source):
        return "makes a GGUF file of another one, and `source` is a folder; name a GGUF file"
    return quantize.problem(spec.quantize, len(split.parts_of(spec.source)))


def _bad_sources(model: Model, spec: Spec, engine: Engine, store: Store) -> list[tuple[str, str]]:
    """Sources that cannot work: a local file that is not there, a scheme that nobody knows."""
    problems = []
    for role, source in engine.sources(spec).items():
        if not store.is_folder(source):
            problem = split.problem(source, lambda one: store.problem(one) or absent(one))
        elif engine.folders:
            problem = store.sets.problem(source, Terms(allow_pickle=spec.allow_pickle))
        else:
            problem = f"is a folder, and {engine.type} takes a file; name one in it"
        if problem is not None:
            where = {"model": "source", "draft": "speculative.draft"}.get(role, f"parameters.{role}")
            if role == "draft" and not spec.speculative.draft:
                where = "parameters.draft.source"
            problems.append((f"{model.path}.{where}", problem))
    return problems
