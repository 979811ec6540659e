"""One plain sentence for each record of the journal. Pure: takes a record, knows nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from modelyard.runtime.journal_records import Kind

Json = Mapping[str, Any]

_ATTEMPTS = {
    "done": "the engine answered",
    "cancelled": "the client left, or its time was over",
    "unreachable": "no connection to the engine could be made",
    "died": "the connection broke before the answer was whole",
    "hung": "the engine was silent for too long",
    "protocol": "the engine broke the protocol",
    "cut": "it was cut, because the instance had to go",
}


def sentence(record: Json) -> str:
    """What a record says. One of a kind that is not known here is shown as it is."""
    tell = _SENTENCES.get(record["kind"])
    try:
        return tell(record) if tell is not None else str(dict(record))
    except (KeyError, TypeError, ValueError):
        return str(dict(record))


# -- requests -------------------------------------------------------------------------------------------


def _arrived(record: Json) -> str:
    if record.get("again"):
        return _arrived_again(record)
    parts = [record["api"]] if "api" in record else []
    parts += [f"priority {record['priority']}"] if "priority" in record else []
    told = f" ({', '.join(parts)})" if parts else ""
    came = f"The request arrived for {record['model']}{told}"
    if record["decision"] == "granted":
        return f"{came} and was given a slot of {record['instance']} at once."
    if record["decision"] == "refused":
        return f"{came} and was refused at once ({record['code']}): {record['reason']}."
    return f"{came}. No slot was free: it queued, {_queue(record)}"


def _arrived_again(record: Json) -> str:
    away = f", not on {', '.join(record['exclude'])}" if record.get("exclude") else ""
    if record["decision"] == "granted":
        return f"It was tried again{away}: it was given a slot of {record['instance']} at once."
    if record["decision"] == "refused":
        return f"It could not be tried again{away} ({record['code']}): {record['reason']}."
    return f"It is to be tried again{away}, and queued, {_queue(record)}"


def _queue(record: Json) -> str:
    ahead, model = record["ahead"], record["model"]
    said = f"behind {ahead} other{'s' * (ahead != 1)}" if ahead else "first"
    if record["place"]:
        said += f"; {model} was number {record['place']} in line for memory"
    said += f". Its wait was estimated at {record['estimate']:.2f} s"
    if record["bound"] is not None:
        said += f" and bound by {record['bound']:.0f} s"
    said += f"; it may wait {record['max_wait']:g} s."
    return f"{said} {model} waits for {record['blocked_by']}." if record["blocked_by"] else said


def _grant(record: Json) -> str:
    loading = f", {record['loading']:.2f} s of it for the load" if record["loading"] else ""
    return f"It was given a slot of {record['instance']} after waiting {record['waited']:.2f} s{loading}."


def _end(record: Json) -> str:
    outcome, after = record["outcome"], f"{record['seconds']:.2f} s after its arrival"
    attempts = record["attempts"]
    tries = f", in {attempts} attempts" if attempts > 1 else ""
    if outcome == "cancelled":
        return f"The request ended {after}: its client left{tries}."
    if outcome.startswith("engine_") and outcome[7:].isdigit():
        return f"The request ended {after} with the engine's own refusal, status {outcome[7:]}{tries}."
    if outcome != "ok":
        return f"The request ended {after} with the error {outcome}{tries}."
    first = f", its first byte after {record['first_byte']:.2f} s" if "first_byte" in record else ""
    tokens = f"; {record['tokens_in']} tokens in, {record['tokens_out']} out" if "tokens_in" in record else ""
    return f"The request was answered (ok) {after}{first}{tries}{tokens}."


# -- instances ------------------------------------------------------------------------------------------


def _leave(record: Json) -> str:
    slept = f" It sleeps ({record['rung']}) instead of stopping." if "rung" in record else ""
    said = f"{record['instance']} leaves: {record['reason']}.{slept}"
    if "cost" in record:
        score = f"{record['standing']}, {record['cost']:.2f} (usual load time x demand lately)"
        said = f"{record['instance']} is the victim: {record['reason']}. Its score: {score}"
        said += f"; who stays: {record['spared']}." if record.get("spared") else "."
        said += slept
    return said


def _start(record: Json) -> str:
    placement = record["placement"].items()
    where = ", ".join(f"{device} ({size / 1e6:,.1f} MB)" for device, size in placement)
    how = "woken" if record["kind"] == Kind.WAKE else "started"
    return f"{record['instance']} was {how} on {where}: {record['reason']}."


def _stop(record: Json) -> str:
    how = "killed" if record.get("now") else "stopped"
    if record["kind"] == Kind.RELEASE:
        how = "cleaned up"
    why = f": {record['reason']}" if record["reason"] else ""
    return f"{record['instance']} is {how}{why}."


def _released(record: Json) -> str:
    missing = record.get("missing")
    if not missing:
        return f"The memory of {record['instance']} is free again."
    gaps = ", ".join(f"{size / 1e6:,.1f} MB on {device}" for device, size in missing.items())
    return f"{record['instance']} is gone, and {gaps} did not come back."


def _loaded(record: Json) -> str:
    if "instance" in record:
        return f"The load of {record['model']} was answered: {record['instance']} is ready."
    return f"The load of {record['model']} was refused ({record['code']}): {record['reason']}."


def _need(size: int | None) -> str:
    return f"{size / 1e6:,.1f} MB" if size is not None else "an unknown amount"


_SENTENCES: dict[str, Callable[[Json], str]] = {
    Kind.OPENED: lambda r: f"The server started (modelyard {r['modelyard']}).",
    Kind.CLOSED: lambda r: "The server stopped.",
    Kind.LOST: lambda r: f"{r['count']} records are missing here: the disk took none.",
    Kind.SHUTDOWN: lambda r: "The server began to shut down" + (" at once." if r["now"] else "."),
    Kind.MODEL_ADDED: lambda r: f"{r['model']} was added; an instance needs {_need(r['need'])}.",
    Kind.MODEL_REMOVED: lambda r: (
        f"{r['version']} was replaced by {r['replaced_by']}."
        if "replaced_by" in r
        else f"{r['model']} was removed."
    ),
    Kind.POLICY: lambda r: f"The policy of {r['model']} was changed.",
    Kind.ARRIVED: _arrived,
    Kind.TURNED_AWAY: lambda r: f"The request was turned away before it was one for a model: {r['code']}.",
    Kind.BLOCKED: lambda r: f"{r['model']} waits for {r['reason']}.",
    Kind.GRANT: _grant,
    Kind.REFUSE: lambda r: (
        f"The version that it waited for is gone: {r['reason']}."
        if " was replaced by " in r["reason"]
        else f"The request was refused while it waited ({r['code']}): {r['reason']}."
    ),
    Kind.CANCEL: lambda r: "Its client left while it waited.",
    Kind.CUT: lambda r: f"The answer of {r['instance']} is cut ({r['code']}): {r['reason']}.",
    Kind.ATTEMPT: lambda r: (
        f"The attempt on {r['instance']} failed ({r['outcome']}): {_ATTEMPTS[r['outcome']]}."
        if r["outcome"] != "cancelled"
        else f"The attempt on {r['instance']} was given up: {_ATTEMPTS[r['outcome']]}."
    ),
    Kind.END: _end,
    Kind.FETCH: lambda r: f"The files of {r['model']} are fetched.",
    Kind.FETCHED: lambda r: f"The files of {r['model']} are here; an instance needs {_need(r['need'])}.",
    Kind.FETCH_FAILED: lambda r: (
        f"The files of {r['model']} could not be fetched ({r['code']}): {r['reason']}."
    ),
    Kind.FILES_LOST: lambda r: (
        f"The files of {r['model']} are not what they were ({r['code']}): {r['reason']}."
        if "code" in r
        else f"The files of {r['model']} were removed from the cache."
    ),
    Kind.LOAD_ASKED: lambda r: f"An instance of {r['model']} was asked for (load, preload or a replica).",
    Kind.LOADED: _loaded,
    Kind.UNLOAD_ASKED: lambda r: f"{r['model']} is to be unloaded{' at once' if r['now'] else ''}.",
    Kind.START: _start,
    Kind.READY: lambda r: (
        f"{r['instance']} was {'awake' if 'rung' in r else 'ready'} after {r['seconds']:.2f} s."
    ),
    Kind.SLEEP: lambda r: f"{r['instance']} is put to sleep ({r['rung']}): {r['reason']}.",
    Kind.ASLEEP: lambda r: f"{r['instance']} is {r['reason']}.",
    Kind.NO_SLEEP: lambda r: f"{r['instance']} did not sleep, and stops: {r['reason']}.",
    Kind.WAKE: _start,
    Kind.FAILED: lambda r: f"{r.get('instance', r['model'])} failed: {r['reason']}.",
    Kind.LEAVE: _leave,
    Kind.STOP: _stop,
    Kind.EXITED: lambda r: f"The process of {r['instance']} ended ({r['cause']}): {r['reason']}.",
    Kind.RELEASE: _stop,
    Kind.RELEASED: _released,
    Kind.NEED: lambda r: f"{r['model']} {r['reason']}.",
    Kind.GAP: lambda r: f"{r['reason']}.",
    Kind.DEVICE_CLOSED: lambda r: f"The device {r['device']} is closed: {r['reason']}.",
    Kind.DEVICE_OPENED: lambda r: f"The device {r['device']} is open again: {r['reason']}.",
}
