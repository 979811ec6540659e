"""What differs between two configurations: model by model, and in all other settings.

Pure. Used by compose, which carries a difference out, and shown to people before it does. A value that may
be a secret is named and never repeated: what came from the environment, what is handed to an engine there,
and what has or follows a name such as `--api-key`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

from modelyard.config.database import PATH as DATABASE_URL
from modelyard.config.database import without_password
from modelyard.config.problems import is_below, join
from modelyard.config.secrets import HIDDEN, SECRET, plain
from modelyard.config.secrets import shown as shown_address
from modelyard.config.values import Config, DeviceSetting, Key, Model
from modelyard.core.languages import name_of
from modelyard.engines.base import Profile

_Shown = Callable[[str, object], object]  # of a path and its value: what people may see


class Kind(StrEnum):
    """What becomes of a model. added, removed: it comes, it goes. replaced: under the same name comes another
    version. policy: the version stays, and with it every process."""

    ADDED = "added"
    REMOVED = "removed"
    REPLACED = "replaced"
    POLICY = "policy"


@dataclass(frozen=True, slots=True)
class Value:
    """One value: its path (below the model, for a model's), what it was and what it will be, as plain JSON;
    None where it is not set."""

    path: str
    before: object
    after: object


@dataclass(frozen=True, slots=True)
class ModelChange:
    name: str
    kind: Kind
    before: Model | None
    after: Model | None
    fields: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """`settings` are what is not a model's; `fixed` are those among them that only a restart can change."""

    models: tuple[ModelChange, ...] = ()
    settings: tuple[Value, ...] = ()
    fixed: tuple[Value, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.models or self.settings)

    def of(self, *kinds: Kind) -> Iterator[ModelChange]:
        """The models that change so."""
        return (model for model in self.models if model.kind in kinds)


ADDRESS = ("server.host", "server.port")
FIXED = ("server.unix", "server.data_dir", "journal.bytes", DATABASE_URL)


def compare(before: Config, after: Config) -> Difference:
    """What has to be done so that `before` becomes `after`."""
    settings = tuple(_settings(before, after))
    fixed = (one for one in settings if _is_fixed(one, before, after))
    return Difference(tuple(_models(before, after)), settings, tuple(fixed))


def _is_fixed(changed: Value, before: Config, after: Config) -> bool:
    if changed.path in ADDRESS:
        return after.server.unix is None
    return (
        changed.path in FIXED or changed.path.startswith("store.") or _is_other_device(changed, before, after)
    )


def _is_other_device(changed: Value, before: Config, after: Config) -> bool:
    """Declared devices cannot come, go, become real ones or be of another scale."""
    section, _, rest = changed.path.partition(".")
    if section != "devices":
        return False
    name, _, field = rest.rpartition(".")
    kinds = [config.devices[name].kind if name in config.devices else "auto" for config in (before, after)]
    return kinds[0] != kinds[1] or field == "scale"


# -- models ---------------------------------------------------------------------------------------------


def _models(before: Config, after: Config) -> Iterator[ModelChange]:
    old = {model.spec.model: model for model in before.models}
    for model in after.models:
        known = old.pop(model.spec.model, None)
        if known is None:
            yield ModelChange(model.spec.model, Kind.ADDED, None, model)
            continue
        changed = tuple(_policy(known, model))
        if known.spec.digest != model.spec.digest:
            found = (*_version(known, before, model, after), *changed)
            yield ModelChange(model.spec.model, Kind.REPLACED, known, model, found)
        elif changed:
            yield ModelChange(model.spec.model, Kind.POLICY, known, model, changed)
    for name, model in old.items():
        yield ModelChange(name, Kind.REMOVED, model, None)


def _policy(old: Model, new: Model) -> Iterator[Value]:
    for field in fields(old.policy):
        before, after = getattr(old.policy, field.name), getattr(new.policy, field.name)
        if before != after:
            yield Value(field.name, plain(before), plain(after))
    for field in fields(old.price):
        was, will_be = getattr(old.price, field.name), getattr(new.price, field.name)
        if was != will_be:
            yield Value(f"price.{field.name}", was, will_be)
    if set(old.aliases) != set(new.aliases):
        yield Value("aliases", list(old.aliases), list(new.aliases))


def _version(old: Model, before: Config, new: Model, after: Config) -> Iterator[Value]:
    """What makes it another version."""
    shown = _shown_of(before, old), _shown_of(after, new)
    for name in ("source", "sha256", "allow_pickle", "quantize", "slots", "devices", "capabilities"):
        yield from _leaves(name, getattr(old.spec, name), getattr(new.spec, name), *shown)
    profiles = before.profiles[old.spec.engine], after.profiles[new.spec.engine]
    yield from _engine(*profiles, *shown)
    yield from _leaves("parameters", old.spec.parameters, new.spec.parameters, *shown)
    yield from _leaves("parallel", asdict(old.spec.parallel), asdict(new.spec.parallel), *shown)
    yield from _leaves("batching", asdict(old.spec.batching), asdict(new.spec.batching), *shown)
    yield from _leaves("speculative", asdict(old.spec.speculative), asdict(new.spec.speculative), *shown)
    for name, was, will_be in (
        ("languages", old.spec.pairs.among, new.spec.pairs.among),
        ("pairs", map(name_of, old.spec.pairs.listed), map(name_of, new.spec.pairs.listed)),
    ):
        yield from _leaves(name, sorted(was), sorted(will_be), *shown)
    yield from _leaves("warm_up", asdict(old.spec.warm_up), asdict(new.spec.warm_up), *shown)


def _engine(old: Profile, new: Profile, old_shown: _Shown, new_shown: _Shown) -> Iterator[Value]:
    yield from _leaves("engine", old.type, new.type, old_shown, new_shown)
    yield from _leaves("engine.program", old.program, new.program, old_shown, new_shown)
    for name in sorted({*old.environment, *new.environment}):
        if old.environment.get(name) != new.environment.get(name):
            said = [HIDDEN if name in profile.environment else None for profile in (old, new)]
            yield Value(f"engine.environment.{name}", *said)


# -- everything else ------------------------------------------------------------------------------------


def _settings(before: Config, after: Config) -> Iterator[Value]:
    named = {**before.all_devices, **after.all_devices}
    yield from _leaves("", _tree(before, named), _tree(after, named), _shown(before), _shown(after))
    yield from _keys(before.keys, after.keys)


def _tree(config: Config, devices: Iterable[str]) -> dict[str, object]:
    settings = config.all_devices
    return {
        "server": _record(config.server),
        "devices": {name: _record(settings.get(name, DeviceSetting())) for name in devices},
        "memory": {"recheck": config.recheck},
        "journal": {"bytes": config.journal},
        "store": _record(config.store),
        "translation": _record(config.translation),
        "registry": {"database_url": config.database_url, "allow_programs": config.allow_programs},
        "preload": ["auto"] if config.preload_auto else list(config.preload),
    }


def _record(value: object) -> dict[str, object]:
    found: dict[str, object] = {}
    for field in fields(value):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        found[field.name] = _record(item) if hasattr(item, "__dataclass_fields__") else item
    return found


def _keys(old: Iterable[Key], new: Iterable[Key]) -> Iterator[Value]:
    """Keys by name: what they open, never what they are."""
    before, after = {key.name: key for key in old}, {key.name: key for key in new}
    for name in (*before, *(name for name in after if name not in before)):
        one, other = before.get(name), after.get(name)
        if one != other:
            said = _opens(other)
            if one is not None and other is not None and one.digest != other.digest:
                said = f"{said}, another secret"
            yield Value(f"keys.{name}", _opens(one), said)


def _opens(key: Key | None) -> str | None:
    if key is None:
        return None
    return f"{' + '.join(sorted(key.scopes))}, {key.max_priority.name.lower()} at most"


def _leaves(path: str, old: object, new: object, old_shown: _Shown, new_shown: _Shown) -> Iterator[Value]:
    """The values that differ below a path."""
    if isinstance(old, Mapping | None) and isinstance(new, Mapping | None) and (old or new):
        before, after = old or {}, new or {}
        for name in (*before, *(name for name in after if name not in before)):
            yield from _leaves(join(path, name), before.get(name), after.get(name), old_shown, new_shown)
    elif old != new:
        yield Value(path, old_shown(path, old), new_shown(path, new))


# -- what people may see --------------------------------------------------------------------------------


def _shown(config: Config) -> _Shown:
    """Of the values that are not a model's."""

    def shown(path: str, value: object) -> object:
        if path == DATABASE_URL and isinstance(value, str):
            value = without_password(value) or None
        return _unless_filled(config, (path,), value)

    return shown


def _shown_of(config: Config, model: Model) -> _Shown:
    """Of a model's values, which may stand in its engine profile as well."""
    profile = f"engines.{model.spec.engine}"

    def shown(path: str, value: object) -> object:
        head, _, rest = path.partition(".")
        places = [join(model.path, path)]
        if head == "parameters":
            places.append(join(f"{profile}.defaults", rest))
        if head == "engine":
            places.append(join(profile, rest or "type"))
        if isinstance(value, str) and head == "parameters" and SECRET.search(path.rpartition(".")[2]):
            return HIDDEN
        if path == "source" and isinstance(value, str):
            value = shown_address(value)
        return _unless_filled(config, places, value)

    return shown


def _unless_filled(config: Config, places: Iterable[str], value: object) -> object:
    if value is not None and any(is_below(one, place) for place in places for one in config.filled):
        return HIDDEN
    return plain(value)
