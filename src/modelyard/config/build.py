"""Sections → frozen values: defaults filled in, names resolved, everything that must fit together checked.

`load` is the package's entry. Problems are collected over all sections and raised at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from importlib.metadata import entry_points
from pathlib import Path

from modelyard.config import text as texts
from modelyard.config.check import validate
from modelyard.config.database import database_url
from modelyard.config.devices import device_settings
from modelyard.config.keys import keys_of
from modelyard.config.listen import server_setting
from modelyard.config.problems import ConfigErrors, Problem, is_below, near_miss
from modelyard.config.reading import FilesRead
from modelyard.config.schema import (
    BatchingSection,
    EngineSection,
    ModelSection,
    PolicySection,
    Root,
    SpeculativeSection,
    WarmUpSection,
)
from modelyard.config.store import store_setting
from modelyard.config.text import Document
from modelyard.config.translation import pairs_setting, translation_setting
from modelyard.config.values import Config, Model, nearest
from modelyard.config.versions import spec_digest
from modelyard.core.types import (
    FREE,
    Batching,
    Parallel,
    Policy,
    Price,
    Priority,
    RateLimit,
    Spec,
    Speculative,
    WarmUp,
    WhenFull,
)
from modelyard.engines.base import Profile
from modelyard.engines.registry import GROUP, usual_slots


def load(
    path: Path | None,
    text: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    engine_types: Collection[str] | None = None,
    reading: FilesRead | None = None,
) -> Config:
    """The configuration in a file; or in `text`, whose relative names then count from `path`'s folder (the
    current one without a path); or all defaults when neither is given.

    `environ` (default: the process's) fills `${NAME}`. `engine_types` are the engines that may be named
    (default: the installed ones). `reading` is told which files were read, also when this raises ConfigErrors
    (a ConfigError) with every problem.
    """
    environ = os.environ if environ is None else environ
    document = texts.read(path, text, environ, reading or FilesRead())
    root = validate(document)
    types = set(engine_types) if engine_types is not None else _installed()
    config = _Build(document, root, environ, types, path).config()
    if document.problems:
        raise ConfigErrors(document.problems)
    config.all_devices  # noqa: B018 - raises ConfigErrors
    return config


def model_of(
    name: str, fields: Mapping[str, object], base: Config, *, engine_types: Collection[str] | None = None
) -> Model:
    """A model that stands in no file: the fields of an entry under `models:`, with the engine profiles and
    policy defaults of `base`. Nothing is filled from the environment. Raises ConfigErrors with paths below
    its name, also for a source that depends on where the server was started."""
    document = Document(tree={"defaults": dict(base.defaults), "models": {name: dict(fields)}})
    root = validate(document)
    types = set(engine_types) if engine_types is not None else _installed()
    build = _Build(document, root, {}, types, None, base.models)
    models = build.models(dict(base.profiles))
    source = fields.get("source")
    if isinstance(source, str) and "://" not in source and not source.startswith("/"):
        message = "is neither an absolute path nor an address with a scheme, such as hf://"
        document.problems.append(Problem(f"models.{name}.source", message))
    if document.problems:
        raise ConfigErrors(document.problems)
    return models[0]


def profile_from(name: str, fields: Mapping[str, object], *, engine_types: Collection[str]) -> Profile:
    """An engine profile that stands in no file: the fields of an entry under `engines:`. Nothing is filled
    from the environment. Raises ConfigErrors, also for a program that depends on where the server was
    started."""
    document = Document(tree={"engines": {name: dict(fields)}})
    root = validate(document)
    program = fields.get("program")
    if isinstance(program, str) and "/" in program and not program.startswith("/"):
        message = "is neither an absolute path nor a name to be found on PATH"
        document.problems.append(Problem(f"engines.{name}.program", message))
    build = _Build(document, root, {}, set(engine_types), None)
    found = [build.profile(name, section) for section in root.engines.values()]
    if document.problems:
        raise ConfigErrors(document.problems)
    return found[0]


def _installed() -> set[str]:
    return {entry.name for entry in entry_points(group=GROUP)}


class _Build:
    """One pass over the sections. Reports into the document and goes on, so that all problems are seen."""

    def __init__(
        self,
        document: Document,
        root: Root,
        environ: Mapping[str, str],
        types: set[str],
        path: Path | None,
        known: Iterable[Model] = (),
    ) -> None:
        self._document = document
        self._root = root
        self._environ = environ
        self._types = types
        self._known = {model.spec.model: model.spec for model in known}  # beside those of the text
        self._base = path.parent if path else Path.cwd()
        # Names that stand in the text, also of entries that were left out for their shape.
        self._engine_names, self._model_names = _names(document, "engines"), _names(document, "models")
        self._positions = {path: str(at) for path, at in document.positions.items()}

    def config(self) -> Config:
        root = self._root
        keys = keys_of(root.keys, self._refuse)
        server = server_setting(root.server, self._environ, self._absolute, self._refuse)
        profiles = {name: self.profile(name, section) for name, section in root.engines.items()}
        models = self.models(profiles)
        return Config(
            server=server,
            profiles=profiles,
            models=models,
            devices=device_settings(root.devices, self._refuse),
            keys=keys,
            preload=tuple(model.spec.model for model in self._preloaded(models)),
            preload_auto=self._preload_auto,
            recheck=root.memory.recheck,
            journal=root.journal.bytes if root.journal.enabled else 0,
            store=store_setting(root.store, self._refuse),
            translation=translation_setting(root.translation, self._model_names, self._refuse),
            database_url=database_url(root.registry, self._absolute, self._refuse),
            allow_programs=root.registry.allow_programs,
            positions=self._positions,
            filled=frozenset(self._document.filled),
            defaults=_mapping(self._document.tree.get("defaults")),
        )

    def _refuse(self, path: str, message: str) -> None:
        self._document.problems.append(Problem(path, message, nearest(self._positions, path) or ""))

    def _absolute(self, name: str, path: str) -> str:
        """A file name made absolute: `~` is the home, relative ones count from the file they stand in."""
        if name == "~" or name.startswith("~/"):
            name = self._environ.get("HOME", str(Path.home())) + name[1:]
        written = nearest(self._document.positions, path)
        base = written.file.parent if written and written.file else self._base
        return os.path.abspath(base / name)

    # -- engines ----------------------------------------------------------------------------------------

    def profile(self, name: str, section: EngineSection) -> Profile:
        path = f"engines.{name}"
        self._known_type(section.type, f"{path}.type")
        program = section.program or ""
        if "/" in program:
            program = self._absolute(program, f"{path}.program")
        return Profile(
            name=name,
            type=section.type,
            program=program,
            environment=dict(section.environment),
            devices=tuple(section.devices),
            exclusive=section.exclusive,
            placement=section.placement,
            defaults=self._resolved(section.defaults, f"{path}.defaults"),
        )

    def _known_type(self, engine: str, path: str) -> None:
        if engine not in self._types:
            known = ", ".join(sorted(self._types))
            self._refuse(
                path, f"no engine '{engine}' is installed{near_miss(engine, self._types)} (known: {known})"
            )

    def _resolved(self, parameters: Mapping[str, object], path: str) -> dict[str, object]:
        """Parameters whose `./…` and `../…` strings are file names, made absolute."""

        def resolve(value: object, at: str) -> object:
            if isinstance(value, str) and value.startswith(("./", "../")):
                return self._absolute(value, at)
            if isinstance(value, dict):
                return {key: resolve(item, f"{at}.{key}") for key, item in value.items()}
            if isinstance(value, list):
                return [resolve(item, f"{at}[{index}]") for index, item in enumerate(value)]
            return value

        return {name: resolve(value, f"{path}.{name}") for name, value in parameters.items()}

    # -- models -----------------------------------------------------------------------------------------

    def models(self, profiles: dict[str, Profile]) -> tuple[Model, ...]:
        """The models, with these engine profiles; one that only an engine's type names is added to them."""
        models = []
        for name, section in self._root.models.items():
            profile = self._engine_of(name, section, profiles)
            policy = self._policy(name, section, profile)
            if profile is not None:
                spec = self._spec(name, section, profile)
                models.append(Model(spec, policy, tuple(section.aliases), self._price(section)))
        self._check_aliases(models)
        return tuple(models)

    def _engine_of(self, name: str, section: ModelSection, profiles: dict[str, Profile]) -> Profile | None:
        wanted = section.engine
        if wanted not in profiles and wanted in self._types:
            profiles[wanted] = Profile(name=wanted, type=wanted)
        if wanted not in profiles and wanted not in self._engine_names:
            hint = near_miss(wanted, [*profiles, *self._types])
            message = (
                f"there is no engine profile or engine '{wanted}'{hint}; profiles are made under `engines:`"
            )
            self._refuse(f"models.{name}.engine", message)
        return profiles.get(wanted)

    def _spec(self, name: str, section: ModelSection, profile: Profile) -> Spec:
        path = f"models.{name}"
        source = section.source or ""
        if source and "://" not in source:
            source = self._absolute(source, f"{path}.source")
        parameters = {**profile.defaults, **self._resolved(section.parameters, f"{path}.parameters")}
        spec = Spec(
            model=name,
            digest="",
            engine=profile.name,
            source=source,
            parameters=parameters,
            capabilities=frozenset(section.capabilities),
            slots=section.slots or usual_slots(profile.type, parameters),
            devices=tuple(section.devices) or profile.devices,
            warm_up=_warm_up(section.warm_up),
            quantize=section.quantize or "",
            sha256=section.sha256 or "",
            allow_pickle=section.allow_pickle,
            parallel=Parallel(section.parallel.tensor, section.parallel.pipeline),
            batching=_batching(section.batching),
            speculative=self._speculative(section.speculative, f"{path}.speculative.draft"),
            pairs=pairs_setting(section, path, self._refuse),
        )
        if section.sha256 and not source:
            self._refuse(f"{path}.sha256", "is of no file: there is no `source`")
        places = (f"{path}.parameters", f"{path}.warm_up", f"engines.{profile.name}.defaults")
        filled = any(is_below(one, place) for place in places for one in self._document.filled)
        return replace(spec, digest=spec_digest(spec, profile, filled=filled))

    def _speculative(self, section: SpeculativeSection | None, path: str) -> Speculative:
        """With the source of the draft model, which may be that of another model."""
        if section is None:
            return Speculative()
        draft, tokens = section.draft, section.tokens or 0
        if (other := self._root.models.get(draft)) is not None and other.source:
            source = (
                other.source
                if "://" in other.source
                else self._absolute(other.source, f"models.{draft}.source")
            )
            return Speculative(source, tokens, other.quantize or "")
        if (known := self._known.get(draft)) is not None and known.source:
            return Speculative(known.source, tokens, known.quantize)
        if "://" in draft:
            return Speculative(draft, tokens)
        if draft.startswith(("/", "./", "../", "~/")):
            return Speculative(self._absolute(draft, path), tokens)
        hint = near_miss(draft, [*self._model_names, *self._known])
        self._refuse(path, f"is no model with a source, and no path: one begins with / or ./{hint}")
        return Speculative()

    def _policy(self, name: str, section: ModelSection, profile: Profile | None) -> Policy:
        for path, each in (("defaults", self._root.defaults), (f"models.{name}", section)):
            if each.replicas is not None and (each.min_replicas, each.max_replicas) != (None, None):
                self._refuse(f"{path}.replicas", "is min_replicas and max_replicas at once: leave those out")
        packing = {"placement": profile.placement} if profile is not None and profile.placement else {}
        chosen = {**_policy_fields(self._root.defaults), **packing, **_policy_fields(section)}
        if name in self._root.preload:
            chosen["preload"] = True
        policy = Policy(**chosen)  # type: ignore[arg-type]
        if policy.min_replicas > policy.max_replicas:
            message = f"is {policy.min_replicas}, above max_replicas ({policy.max_replicas})"
            self._refuse(f"models.{name}.min_replicas", message)
        return policy

    def _price(self, section: PolicySection) -> Price:
        chosen = section.price or self._root.defaults.price
        return FREE if chosen is None else Price(chosen.input, chosen.output, chosen.load)

    def _check_aliases(self, models: list[Model]) -> None:
        taken = {name: f"the model '{name}'" for name in self._model_names}
        for model in models:
            for index, alias in enumerate(model.aliases):
                if alias in taken:
                    self._refuse(
                        f"{model.path}.aliases[{index}]", f"'{alias}' is already a name of {taken[alias]}"
                    )
                taken.setdefault(alias, f"the model '{model.spec.model}'")

    @property
    def _preload_auto(self) -> bool:
        return self._root.preload == ["auto"] and "auto" not in self._model_names

    def _preloaded(self, models: tuple[Model, ...]) -> list[Model]:
        """Those listed, in order, then those whose own policy says so."""
        by_name = {model.spec.model: model for model in models}
        listed = []
        for index, name in enumerate([] if self._preload_auto else self._root.preload):
            if name not in self._model_names:
                hint = near_miss(name, self._model_names)
                self._refuse(f"preload[{index}]", f"there is no model '{name}'{hint}")
            elif name in by_name and by_name[name] not in listed:
                listed.append(by_name[name])
        return listed + [model for model in models if model.policy.preload and model not in listed]


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _names(document: Document, section: str) -> tuple[str, ...]:
    names = document.tree.get(section)
    return tuple(names) if isinstance(names, dict) else ()


def _warm_up(section: WarmUpSection) -> WarmUp:
    return WarmUp(tuple(section.prompts), tuple(section.prefixes), section.read_ahead)


def _batching(section: BatchingSection) -> Batching:
    return Batching(section.max_size or 0, section.max_tokens or 0, section.max_wait_ms or 0)


def _policy_fields(section: PolicySection) -> dict[str, object]:
    """What a section says about policy; what it leaves out is not in it."""
    chosen: dict[str, object] = {
        field.name: value for field in fields(Policy) if (value := getattr(section, field.name)) is not None
    }
    if section.replicas is not None:
        chosen["min_replicas"] = chosen["max_replicas"] = section.replicas
    if section.priority is not None:
        chosen["priority"] = Priority[section.priority.upper()]
    if section.when_full is not None:
        chosen["when_full"] = WhenFull(section.when_full)
    if section.rate_limit is not None:
        chosen["rate_limit"] = RateLimit(section.rate_limit.requests, section.rate_limit.per)
    return chosen
