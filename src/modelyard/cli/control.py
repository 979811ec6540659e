"""Commands that ask a running server: ps, devices, load, unload, logs, explain."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from modelyard.client import Client

DEFAULT_URL = "http://127.0.0.1:8080"

Url = Annotated[str, typer.Option(envvar="MODELYARD_URL", help="The server: http://HOST:PORT or unix:/PATH.")]
Key = Annotated[
    str | None, typer.Option(envvar="MODELYARD_API_KEY", help="A key with the scope admin, if it needs one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A model's name or alias.")]


def connect(url: str, key: str | None) -> Client:
    from modelyard.client import Client

    return Client(url, key)


def ps(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Show models, instances, memory and who waits."""
    with connect(url, key) as client:
        status = client.ps()
    if as_json:
        print_json(status)
    else:
        from modelyard.cli import tables

        tables.print_status(tables.console(), status)


def devices(url: Url = DEFAULT_URL, key: Key = None, as_json: AsJson = False) -> None:
    """Show the memory of each device and who holds it."""
    with connect(url, key) as client:
        found = client.devices()
    if as_json:
        print_json(found)
    else:
        from modelyard.cli import tables

        tables.print_devices(tables.console(), found)


def load(
    model: ModelName,
    url: Url = DEFAULT_URL,
    key: Key = None,
    wait: Annotated[bool, typer.Option(help="Return when it is ready.")] = True,
    evict: Annotated[bool, typer.Option(help="Put others out for it.")] = True,
) -> None:
    """Load a model."""
    with connect(url, key) as client:
        answer = client.load(model, wait=wait, evict=evict)
    if answer["instance"]:
        typer.echo(f"{answer['model']} is ready: {answer['instance']} ({answer['seconds']:.2f} s)")
    else:
        typer.echo(f"{answer['model']} is being loaded")


def unload(
    model: ModelName,
    url: Url = DEFAULT_URL,
    key: Key = None,
    wait: Annotated[bool, typer.Option(help="Return when it is gone.")] = True,
    now: Annotated[bool, typer.Option(help="Cut what runs on it.")] = False,
) -> None:
    """Unload a model: what runs on it finishes first."""
    with connect(url, key) as client:
        answer = client.unload(model, now=now, wait=wait)
    instances = ", ".join(answer["instances"])
    if not instances:
        typer.echo(f"{answer['model']} was not loaded")
    elif answer["gone"]:
        typer.echo(f"{answer['model']} is gone: {instances} ({answer['seconds']:.2f} s)")
    else:
        typer.echo(f"{answer['model']} is leaving: {instances}")


DeviceName = Annotated[str, typer.Argument(metavar="DEVICE", help="A device, as `devices` names it.")]


def fence(
    device: DeviceName,
    url: Url = DEFAULT_URL,
    key: Key = None,
    reason: Annotated[
        str, typer.Option(help="Told to whoever asks why nothing is placed there.")
    ] = "by order",
    now: Annotated[bool, typer.Option("--now", help="Cut what runs there.")] = False,
) -> None:
    """Place nothing on a device any more, until `unfence` or a restart: who is there finishes what runs, and
    leaves."""
    with connect(url, key) as client:
        there = client.fence(device, reason, now=now)["instances"]
    leaving = ", ".join(use["instance"] for use in there)
    typer.echo(f"{device} is fenced; {f'{leaving} leave it' if leaving else 'nobody is there'}")


def unfence(device: DeviceName, url: Url = DEFAULT_URL, key: Key = None) -> None:
    """Use a fenced device again."""
    with connect(url, key) as client:
        closed = client.unfence(device)["closed"]
    typer.echo(f"{device} is {closed or 'in use again'}")


def logs(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", help="An instance, as `ps` names it.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=10_000, help="How many lines.")] = 100,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what it writes.")] = False,
) -> None:
    """Print what an instance has written."""
    with connect(url, key) as client:
        if not follow:
            typer.echo(client.logs(instance, lines=lines), nl=False)
            return
        for piece in client.follow_logs(instance, lines=lines):
            typer.echo(piece, nl=False)
            sys.stdout.flush()


def explain(
    name: Annotated[
        str,
        typer.Argument(metavar="REQUEST|MODEL", help="A request's id (x-modelyard-request), or a model."),
    ],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Tell what happened to a request or a model, and why."""
    with connect(url, key) as client:
        told = client.explain(name)
    if as_json:
        print_json(told)
    else:
        from rich.console import Console

        from modelyard.cli import tables

        tables.print_story(Console(highlight=False), told)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
