"""Commands for models as data, from `register` to `rm`."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.control import DEFAULT_URL, AsJson, Key, Url, connect, print_json
from modelyard.errors import RegistryUnavailable

if TYPE_CHECKING:
    from modelyard.client import Client

LAST_POLICIES = 5

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or alias.")]
Number = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="A version's number.")]
Swap = Annotated[
    bool, typer.Option("--swap", help="Where both do not fit, the one that serves leaves first.")
]
Wait = Annotated[bool, typer.Option(help="Return when it is done.")]
Fields = Annotated[
    Path | None,
    typer.Option(
        "-f", "--file", help="YAML or JSON with the fields of an entry under `models:`; `-`: stdin."
    ),
]


def get(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="One; else all.")] = None,
    name: Annotated[str, typer.Option(help="Those with this in their name.")] = "",
    capability: Annotated[str, typer.Option(help="Those that can do this: chat, embedding …")] = "",
    pair: Annotated[str, typer.Option(help="Those that translate this, e.g. en-de.")] = "",
    state: Annotated[
        str, typer.Option(help="Those that are loaded, loading, fetching, failed or idle.")
    ] = "",
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """List models."""
    given = {"name": name, "capability": capability, "pair": pair, "state": state}
    filters = {field: value for field, value in given.items() if value}
    if model is not None and filters:
        raise typer.BadParameter("name a model, or say which; not both")
    with connect(url, key) as client:
        found = [client.model(model)] if model is not None else client.models(**filters)
    if as_json:
        print_json(found)
    else:
        from modelyard.cli import registry_tables, tables

        registry_tables.print_models(tables.console(), found)


def describe(
    model: Annotated[str, typer.Argument(metavar="MODEL[@VERSION]", help="Its name, alias, or a version's.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a model or a version: its policies, too, and its files."""
    with connect(url, key) as client:
        found = client.model(model)
        if known := found["modelyard"]["registered"]:
            found["artifacts"] = client.version(found["id"], known["number"])["artifacts"]
            with suppress(RegistryUnavailable):
                found["policies"] = client.policies(found["id"], limit=LAST_POLICIES)
    if as_json:
        print_json(found)
    else:
        from modelyard.cli import registry_tables, tables

        registry_tables.print_model(tables.console(), found)


def versions(
    model: Model, file: Fields = None, url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False
) -> None:
    """Show the versions of a registered model; with -f, add one first."""
    with connect(url, key) as client:
        if file is not None:
            client.add_version(model, **fields_in(file))
        found = client.versions(model)
    if as_json:
        print_json(found)
    else:
        from modelyard.cli import registry_tables, tables

        registry_tables.print_versions(tables.console(), found)


def register(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Default: its source's file's.")
    ] = None,
    file: Fields = None,
    source: Annotated[
        str | None, typer.Option(help="hf://, https://, s3://, … or a path on the server.")
    ] = None,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Register a model: its fields, or just a source. It is served from now on."""
    fields = fields_in(file) if file is not None else {}
    if source is not None:
        fields["source"] = source
    if not fields:
        raise typer.BadParameter("name --source or --file")
    with connect(url, key) as client:
        found = client.register(name, description, **fields)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['id']} is registered: {found['modelyard']['version']}")


def set_policy(
    model: Model,
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FIELD=VALUE]...",
            help="keep_alive=1h, pin=true; with nothing behind the `=` its default holds again.",
        ),
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Another name of it; those that are given replace all.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="For people.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Change the policy of a registered model, unless somebody else changes it meanwhile."""
    changes = dict(_assigned(word) for word in fields or ())
    changes |= {"aliases": alias} if alias else {}
    changes |= {"description": description} if description is not None else {}
    if not changes:
        raise typer.BadParameter("say what to change: FIELD=VALUE, --alias or --description")
    with connect(url, key) as client:
        known = client.model(model)["modelyard"]["registered"]
        found = client.set_policy(model, revision=known and known["revision"], **changes)
    if as_json:
        print_json(found)
    else:
        typer.echo(f"{found['id']} is changed: revision {found['modelyard']['registered']['revision']}")


def promote(
    model: Model,
    version: Number,
    swap: Swap = False,
    wait: Wait = True,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Have a version serve its model: it is loaded first, then takes over."""
    with connect(url, key) as client:
        _finish(client, client.promote(model, version, swap=swap), wait=wait)


def rollback(
    model: Model,
    version: Annotated[
        int | None, typer.Argument(metavar="[VERSION]", min=1, help="Default: the one before.")
    ] = None,
    swap: Swap = False,
    wait: Wait = True,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Have the version before serve its model again."""
    with connect(url, key) as client:
        _finish(client, client.rollback(model, version, swap=swap), wait=wait)


def rm(
    model: Model,
    force: Annotated[bool, typer.Option("--force", help="With its aliases.")] = False,
    wait: Wait = True,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Remove a registered model; what runs on it finishes. Its files stay."""
    with connect(url, key) as client:
        task = client.remove(model, force=force)
        if task is not None:
            _finish(client, task, wait=wait)
    if task is None:
        typer.echo(f"{model} is gone")


def tag(
    model: Model,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="`MODEL:TAG` is a name of that version then.")],
    version: Annotated[int | None, typer.Argument(metavar="[VERSION]", min=1, help="Its number.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the tag away.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Have a tag name a version, or take it away."""
    if (version is None) != remove:
        raise typer.BadParameter("name a version, or --remove")
    with connect(url, key) as client:
        client.tag(model, tag, version)
    typer.echo(f"{model}:{tag} is no more" if remove else f"{model}:{tag} is version {version}")


def prefetch(
    models: Annotated[list[str], typer.Argument(metavar="MODEL…", help="Names of models or versions.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
) -> None:
    """Fetch the files of models before anybody asks for them."""
    with connect(url, key) as client:
        task = _finish(client, client.prefetch(*models), wait=True)
    from modelyard.cli import registry_tables, tables

    found = task["result"]["models"]
    registry_tables.print_prefetched(tables.console(), found)
    if any(one["outcome"] == "failed" for one in found):
        raise typer.Exit(1)


def _assigned(word: str) -> tuple[str, Any]:
    """A field and its value, as YAML has it; None where there is none. Raises BadParameter."""
    import yaml

    field, given, text = word.partition("=")
    if not (given and field.isidentifier() and field != "revision"):
        raise typer.BadParameter(f"{word!r} is not FIELD=VALUE")
    try:
        value = yaml.safe_load(text)
        json.dumps(value)
    except (yaml.YAMLError, TypeError):
        value = text
    return field, value


def fields_in(file: Path) -> dict[str, Any]:
    """The fields in a file. Raises BadParameter."""
    import yaml

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{file}: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise typer.BadParameter(f"{file}: holds no fields")
    return found


def _finish(client: Client, task: dict[str, Any], *, wait: bool) -> dict[str, Any]:
    """Follow a task to its end, if it is waited for."""
    if not wait:
        typer.echo(f"{task['kind']} {task['subject']}: under way as {task['id']}")
        return task
    from rich.console import Console

    from modelyard.cli.registry_tables import Following

    with Following(Console(stderr=True, highlight=False)) as shown:
        for now in client.follow(task):
            task = now
            shown.update(task)
    typer.echo(f"{task['kind']} {task['subject']}: {task['state']} ({task['ended'] - task['created']:.2f} s)")
    return task
