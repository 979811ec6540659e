"""What the registry adds to a configuration beside models: keys, and engine profiles for registered models.

Used by `live`, which serves them, by `keys` and `profiles`, which change them, and by `upkeep`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256

from modelyard.config import Config, ConfigErrors, Problem
from modelyard.config.build import profile_from
from modelyard.config.listen import check_protected
from modelyard.config.together import profile_of
from modelyard.config.values import nearest
from modelyard.engines import registry as engines
from modelyard.engines.base import Profile
from modelyard.errors import RegistryUnavailable
from modelyard.registry.records import Json, KeyRecord, ProfileRecord

MARK = "registry.open"  # in the data folder: names the database that had no keys when it was read last
FORBIDDEN = (
    "says what is run on the server's machine, or read there; only its configuration's files may, unless "
    "they say `registry: {allow_programs: true}`"
)


@dataclass(frozen=True, slots=True)
class Additions:
    """By name."""

    keys: Mapping[str, KeyRecord] = field(default_factory=dict)
    profiles: Mapping[str, ProfileRecord] = field(default_factory=dict)
    _made: dict[str, tuple[ProfileRecord, Profile]] = field(default_factory=dict, repr=False, compare=False)

    def made(self, name: str) -> Profile:
        """The profile of this name, made once as long as its record is the same. Raises ConfigErrors."""
        record, known = self.profiles[name], self._made.get(name)
        if known is None or known[0] != record:
            known = self._made[name] = record, made_of(name, record.profile)
        return known[1]

    def to(self, base: Config) -> Config:
        """`base` with them. Raises ConfigErrors whose paths are those of `problems`."""
        if problems := self.problems(base):
            raise ConfigErrors(
                Problem(path, message, nearest(base.positions, path) or "")
                for path, message in problems.items()
            )
        made = {name: self.made(name) for name in self.profiles}
        keys = [self.keys[name].key for name in sorted(self.keys)]  # who follows is cut when any differs
        keys = [] if base.keyless else [*base.keys, *keys]
        return replace(base, keys=tuple(keys), profiles={**base.profiles, **made})

    def problems(self, base: Config) -> dict[str, str]:
        """What cannot be added to `base`, by its path (`keys.NAME`, `engines.NAME`), and why."""
        found = self.clashes(base)
        for name in self.profiles:
            try:
                check_programs(base, self.made(name))
            except ConfigErrors as error:
                found.setdefault(f"engines.{name}", str(error))
        return found

    def clashes(self, base: Config) -> dict[str, str]:
        """Those of them whose names `base` has as well."""
        taken = {key.name for key in base.keys}
        keys = {f"keys.{name}": f"modelyard key rm {name}" for name in self.keys if name in taken}
        profiles = {
            f"engines.{name}": f"DELETE /v1/engines/{name}" for name in self.profiles if name in base.profiles
        }
        return {
            path: f"is a name that the registry has as well; use another one here, or remove that ({removal})"
            for path, removal in (keys | profiles).items()
        }

    def without(self, paths: Container[str]) -> Additions:
        """Those that are not at these paths."""
        return self._those(lambda path: path not in paths)

    def only(self, paths: Container[str]) -> Additions:
        """Those that are at these paths."""
        return self._those(lambda path: path in paths)

    def _those(self, wanted: Callable[[str], bool]) -> Additions:
        return self.then(
            {name: one for name, one in self.keys.items() if wanted(f"keys.{name}")},
            {name: one for name, one in self.profiles.items() if wanted(f"engines.{name}")},
        )

    def then(self, keys: Mapping[str, KeyRecord], profiles: Mapping[str, ProfileRecord]) -> Additions:
        """Others in their place; of these, what was made of the same records is not made again."""
        return Additions(keys, profiles, {name: self._made[name] for name in profiles.keys() & self._made})


def check_keys(config: Config, problem: str) -> None:
    """Raises ConfigErrors where nobody would be asked for a key, and that may not be. `problem`: why the
    registry is away, empty while it is there."""
    check_protected(config)
    if problem and not config.keys and not config.keyless and not _had_none(config):
        message = (
            f"{problem}; its keys are not known then, and the file has none, so everybody would be let in: "
            "bring the database back, or add a key to the file"
        )
        raise config.failure([("registry.database_url", message)])


def expect_keys(config: Config) -> None:
    """Have a start know that the registry may have keys, also while that is away. Raises
    RegistryUnavailable."""
    mark = config.server.data_dir / MARK
    try:
        mark.unlink(missing_ok=True)
    except OSError as error:
        raise RegistryUnavailable(
            f"the key is not made: {mark} cannot be removed ({error.strerror or error}), so a start without "
            "the database would let everybody in"
        ) from error


def remember_keys(config: Config, there: bool) -> None:
    """Have a start know whether the registry had keys when it was read last."""
    mark = config.server.data_dir / MARK
    with suppress(OSError):  # then they are expected, or it was said before
        if there:
            mark.unlink(missing_ok=True)
        elif not _had_none(config):
            mark.write_text(_name(config))


def _had_none(config: Config) -> bool:
    try:
        return (config.server.data_dir / MARK).read_text() == _name(config)
    except (OSError, ValueError):
        return False


def _name(config: Config) -> str:
    """Tells the database from every other."""
    return sha256(config.registry_url.encode()).hexdigest()


def made_of(name: str, fields: Json) -> Profile:
    """Raises ConfigErrors."""
    return profile_from(name, fields, engine_types=engines.load().keys())


def check_programs(base: Config, profile: Profile) -> None:
    """Raises ConfigErrors for a profile of the registry that says what is run on this machine, unless that is
    allowed."""
    trusted = engines.load()[profile.type].trusted
    said = [
        *(["program"] if profile.program else []),
        *(["environment"] if profile.environment else []),
        *(f"defaults.{name}" for name in _among(trusted, profile.defaults)),
    ]
    if said and not base.allow_programs:
        raise ConfigErrors(Problem(f"engines.{profile.name}.{field}", FORBIDDEN) for field in said)


def check_parameters(base: Config, model: str, fields: Json) -> None:
    """Raises ConfigErrors for a model of the registry that does so. Its fields are of the right shape."""
    parameters = fields.get("parameters")
    trusted = engines.load()[profile_of(base, str(fields["engine"])).type].trusted
    said = _among(trusted, parameters) if isinstance(parameters, Mapping) else []
    if said and not base.allow_programs:
        raise ConfigErrors(Problem(f"models.{model}.parameters.{field}", FORBIDDEN) for field in said)


def _among(trusted: Collection[str], parameters: Mapping[str, object]) -> list[str]:
    """Those of these parameters, with dots for what is in a mapping, that are said."""
    found = []
    for name in sorted(trusted):
        group, _, inner = name.partition(".")
        within = parameters.get(group)
        if name in parameters or (inner and isinstance(within, Mapping) and inner in within):
            found.append(name)
    return found
