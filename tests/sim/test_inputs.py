"""Traces as files: each kind that is read, and everything that can be wrong with one."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.core import actions as ac
from modelyard.core import events as ev
from modelyard.core.state import State
from modelyard.core.types import Charge, Device, DeviceKind, Policy, Spec
from modelyard.runtime.journal import Journal
from modelyard.runtime.journal_records import Ended
from modelyard.sim.inputs import Trace, TraceError, read
from modelyard.sim.logs import FORMATS
from modelyard.sim.scene import Rules, load, of_journal

NAMES = (
    "t",
    "kind",
    "request",
    "model",
    "decision",
    "time",
    "path",
    "uri",
    "duration",
    "placement",
    "instance",
)
AZURE = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9051690,396,109
2023-11-16 18:15:51.2224670,879,55
"""


def written(folder: Path, text: str | bytes, name: str = "trace") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def records(*fields: Iterable[tuple[str, object]]) -> str:
    return "".join(json.dumps(dict(one)) + "\n" for one in fields)


def note(trace: Trace, part: str) -> str:
    return next(text for text in trace.notes if part in text)


# -- CSV --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())])
def test_the_azure_traces_packed_or_not(tmp_path: Path, pack: object) -> None:
    trace = read(written(tmp_path, pack(AZURE)))  # type: ignore[operator]
    assert trace.format == "csv"
    assert [round(request.at, 3) for request in trace.requests] == [0.0, 4.225, 4.542]
    assert [(one.tokens_in, one.tokens_out, one.model) for one in trace.requests][1] == (396, 109, "")


@pytest.mark.parametrize(
    "head",
    ["timestamp,input tokens,output tokens,model", "Time;Request tokens;Response tokens;Model"],
)
def test_columns_by_many_names(tmp_path: Path, head: str) -> None:
    delimiter = ";" if ";" in head else ","
    lines = [head, delimiter.join(["5", "10", "20", '"a"']), delimiter.join(["7.5", "30", "40", "b"])]
    trace = read(written(tmp_path, "\n".join(lines)))
    assert [(one.at, one.tokens_in, one.tokens_out, one.model) for one in trace.requests] == [
        (0.0, 10, 20, "a"),
        (2.5, 30, 40, "b"),
    ]
    assert trace.models == ["a", "b"]


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
def test_times_as_numbers_of_any_unit(tmp_path: Path, unit: int) -> None:
    times = [1_700_000_000 * unit, 1_700_000_002 * unit]
    text = "timestamp,input_tokens,output_tokens\n" + "".join(f"{at},1,1\n" for at in times)
    assert read(written(tmp_path, text)).seconds == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("times", "unit", "seconds"),
    [
        ((0, 5e10, 2e11), "milliseconds", 2e8),
        ((0, 1_000, 3_600_000), "seconds", 3.6e6),
        ((1_000_000, 2e15, 2e15 + 1e6), "microseconds", 2e9),
    ],
)
def test_all_times_of_a_file_are_of_one_unit_that_is_said(
    tmp_path: Path, times: tuple[float, ...], unit: str, seconds: float
) -> None:
    csv = "timestamp,input_tokens,output_tokens\n" + "".join(f"{at},1,1\n" for at in times)
    lines = records(*({"ts": at, "model": "a"}.items() for at in times))
    for text in (csv, lines):
        trace = read(written(tmp_path, text))
        assert trace.seconds == pytest.approx(seconds, rel=1e-6)
        assert note(trace, "numbers") == f"times are numbers, read as {unit}"
    assert not [one for one in read(written(tmp_path, AZURE)).notes if "numbers" in one]


def test_a_time_that_cannot_be_of_the_unit_is_a_bad_line(tmp_path: Path) -> None:
    times = [*range(60), 1_700_000_000_000]
    text = "timestamp,input_tokens,output_tokens\n" + "".join(f"{at},1,1\n" for at in times)
    trace = read(written(tmp_path, text))
    assert trace.seconds == 59
    assert "too large for one in seconds, as others are: 1700000000000" in note(trace, "1 bad line")


# -- what can be wrong ------------------------------------------------------------------------------------


def test_bad_lines_are_counted_skipped_and_said(tmp_path: Path) -> None:
    bad = ["yesterday,1,1", "2023-11-16 18:16:00,many,1", "2023-11-16 18:16:00,-4,1", "2023-11-16 18:16:01,5"]
    trace = read(written(tmp_path, AZURE + "\n".join(bad) + "\nnan,1,1\n\n2023-11-16 18:17:00,7,7\n"))
    assert len(trace.requests) == 4
    assert note(trace, "bad") == (
        "5 bad lines were skipped, the first is line 5: its time cannot be read: 'yesterday'"
    )


def test_one_that_is_out_of_order_is_sorted_and_said(tmp_path: Path) -> None:
    lines = AZURE.splitlines()
    trace = read(written(tmp_path, "\n".join([lines[0], lines[3], lines[1], lines[2]])))
    assert [request.tokens_in for request in trace.requests] == [374, 396, 879]
    assert trace.requests[0].at == 0.0
    assert note(trace, "sorted") == "1 requests stood behind later ones: sorted by arrival"


@pytest.mark.parametrize("text", [b"", b"\n\n", gzip.compress(b"")])
def test_an_empty_one(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(TraceError, match="is empty"):
        read(written(tmp_path, text))


def test_one_with_a_header_alone(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="has no request"):
        read(written(tmp_path, AZURE.splitlines()[0]))


@pytest.mark.parametrize("text", [b"once upon a time\nthere was\n", bytes(range(256)) * 40, b'{"a": 1}\n'])
def test_no_trace_at_all(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(TraceError, match=r"is no trace: Expected is a CSV .*GET /admin/journal"):
        read(written(tmp_path, text))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read: No such file"):
        read(tmp_path / "none")


def test_one_whose_lines_are_all_bad(tmp_path: Path) -> None:
    with pytest.raises(
        TraceError, match=r"2 of its lines are bad, the first is line 2: has 1 columns, not 3"
    ):
        read(written(tmp_path, AZURE.splitlines()[0] + "\nx\ny\n"))


def test_a_format_that_it_has_not(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"read as a journal .* line 1: is no JSON object"):
        read(written(tmp_path, AZURE), format="journal")
    with pytest.raises(TraceError, match="no column input tokens, output tokens"):
        read(written(tmp_path, "time,words\n1,2\n"), format="csv")


def test_one_that_is_cut_off_in_the_packing(tmp_path: Path) -> None:
    lines = AZURE + "".join(f"2023-11-16 18:16:{at % 60:02},{at * 7919 % 997},{at}\n" for at in range(20_000))
    trace = read(written(tmp_path, gzip.compress(lines.encode())[:-2000]))
    assert 3 < len(trace.requests) < 20_003
    assert "is missing" in note(trace, "broken")


def test_the_limit_is_said_when_it_cuts(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE)
    assert note(read(path, limit=2), "cut") == "cut after 2 requests: --limit reads more"
    assert len(read(path, limit=2).requests) == 2
    assert not [text for text in read(path, limit=3).notes if "cut" in text]


def test_a_line_without_end_is_a_bad_line(tmp_path: Path) -> None:
    trace = read(written(tmp_path, AZURE + "7" * 3_000_000 + "\n2023-11-16 18:17:00,7,7\n"))
    assert len(trace.requests) == 4
    assert note(trace, "1 bad line")


# -- our own journal --------------------------------------------------------------------------------------


def test_a_journal_has_its_models_and_service_times(tmp_path: Path) -> None:
    text = records(
        {"t": 100.0, "kind": "opened", "pid": 1}.items(),
        {"t": 101.0, "kind": "arrived", "request": "r-1", "model": "a", "decision": "queued"}.items(),
        {"t": 102.0, "kind": "arrived", "request": "r-2", "model": "b", "decision": "refused"}.items(),
        {"t": 103.0, "kind": "grant", "request": "r-1", "model": "a", "instance": "a-1"}.items(),
        {"t": 104.0, "kind": "arrived", "request": "r-1", "model": "a", "again": True}.items(),
        {"t": 104.5, "kind": "grant", "request": "r-1", "model": "a", "instance": "a-2"}.items(),
        {"t": 105.0, "kind": "arrived", "request": "r-3", "model": "a", "decision": "queued"}.items(),
        {"t": 106.0, "kind": "end", "request": "r-1", "model": "a", "tokens_in": 5, "tokens_out": 9}.items(),
        {"t": 107.0, "kind": "end", "request": "r-0", "model": "a", "seconds": 9.0}.items(),
        {"t": 100.5, "kind": "arrived", "request": "r-4", "model": "b", "decision": "granted"}.items(),
        {"t": 101.5, "kind": "end", "request": "r-4", "model": "b"}.items(),
    )
    trace = read(written(tmp_path, text + '{"t": 108, "kind": "arr'))
    assert trace.format == "journal"
    assert [(one.at, one.model, one.service, one.tokens_out) for one in trace.requests] == [
        (0.0, "b", 1.0, 0),
        (0.5, "a", 3.0, 9),
        (1.5, "b", None, 0),
        (4.5, "a", None, 0),
    ]
    assert note(trace, "left out") == "1 requests whose arrival is not in it were left out"
    assert note(trace, "bad").endswith("line 12: is no JSON object")


def test_a_journal_tells_of_its_server(tmp_path: Path) -> None:
    text = records(
        {"t": 1.0, "kind": "device", "device": "gpu0", "total": 100, "budget": 90}.items(),
        {"t": 1.0, "kind": "model_added", "model": "a", "slots": 4, "need": None}.items(),
        {"t": 2.0, "kind": "arrived", "request": "r-1", "model": "a", "decision": "queued"}.items(),
        {"t": 2.0, "kind": "start", "model": "a", "instance": "a-1", "placement": {"gpu0": 60}}.items(),
        {"t": 5.5, "kind": "ready", "model": "a", "instance": "a-1"}.items(),
        {"t": 6.0, "kind": "start", "model": "b", "instance": "b-2", "placement": {"gpu0": "?"}}.items(),
    )
    server = read(written(tmp_path, text)).server
    assert server is not None
    assert server.devices == {"gpu0": 90}
    assert server.models == {"a": {"gpu0": 60}, "b": {}}
    assert (server.slots, server.loads) == ({"a": 4}, {"a": 3.5})
    scene = of_journal(server)
    assert (scene.models[0].load, scene.models[0].spec.slots, scene.models[0].need.bytes) == (3.5, 4, 60)
    assert scene.models[1].load == Rules().load_fixed


async def test_the_server_s_own_ring_once_it_has_turned_over(tmp_path: Path) -> None:
    """From the journal that is written to the jobs that are replayed."""
    spec = Spec("a", "0" * 12, "fake", slots=4)
    journal = Journal(tmp_path / "journal", 40_000)
    journal.open()
    for event, actions in (
        (ev.DeviceAdded(Device("gpu0", DeviceKind.DECLARED, 100, 90)), []),
        (ev.Added(spec, Policy()), []),
        (ev.Tick(), [ac.Start("a-1", 1, spec.version, (Charge("gpu0", 60),), 0.0, "why")]),
        (ev.Ready("a-1", 1), [ac.Note("ready", "a-1", "ready", (("model", "a"), ("seconds", 3.5)))]),
    ):
        journal.step(1.0, event, actions, State(), {})
    for number in range(400):
        request = f"r-{number}"
        journal.step(
            2.0, ev.Arrived(request, spec.version), [ac.Grant(request, "a-1", 1, 0.0, 0.0)], State(), {}
        )
        journal.ended(Ended(request, spec.version, "chat", 2.0, "ok", 1, "a-1"))
        if number % 20 == 0:
            ring = b"".join(await journal.read())
    await journal.close()
    assert b'"device"' not in b"".join(line for line in ring.splitlines() if b"snapshot" not in line)
    trace = read(written(tmp_path, ring))
    assert trace.server is not None
    scene = of_journal(trace.server)
    assert [model.load for model in scene.models] == [3.5]
    assert len(load(trace, scene, seed=1, skew=1.0, stretch=1.0).jobs) > 50


def test_a_file_of_the_ring_begins_with_what_there_is(tmp_path: Path) -> None:
    a = {"t": 1.0, "kind": "snapshot", "model": "a", "slots": 4}
    text = records(
        {"t": 1.0, "kind": "snapshot", "device": "gpu0", "total": 100, "budget": 90}.items(),
        {**a, "placement": {"gpu0": 60}, "load": 3.5}.items(),
        {"t": 1.0, "kind": "snapshot", "model": "b", "slots": 2, "need": None}.items(),
        {"t": 2.0, "kind": "arrived", "request": "r-1", "model": "a", "decision": "granted"}.items(),
        {"t": 3.0, "kind": "arrived", "request": "r-2", "model": "b", "decision": "queued"}.items(),
        {"t": 5.0, "kind": "end", "request": "r-1", "model": "a"}.items(),
    )
    trace = read(written(tmp_path, text))
    assert trace.server is not None
    scene = of_journal(trace.server)
    assert [(device.id, device.budget) for device in scene.devices] == [("gpu0", 90)]
    (model,) = scene.models
    assert (model.spec.model, model.spec.slots, model.need.bytes, model.load) == ("a", 4, 60, 3.5)
    jobs = load(trace, scene, seed=1, skew=1.0, stretch=1.0)
    assert (len(jobs.jobs), jobs.skipped) == (1, 1)
    assert jobs.assumed[-1].endswith("without a size: b")


@pytest.mark.parametrize(
    ("known", "missing"),
    [
        ({"kind": "start", "model": "a", "placement": {"gpu0": 60}}, "devices"),
        ({"kind": "device", "device": "gpu0", "budget": 90}, "sizes of models"),
    ],
)
def test_a_journal_that_tells_too_little_needs_a_configuration(
    tmp_path: Path, known: dict[str, object], missing: str
) -> None:
    arrived = {"t": 2.0, "kind": "arrived", "request": "r-1", "model": "a", "decision": "granted"}
    trace = read(written(tmp_path, records({"t": 1.0, **known}.items(), arrived.items())))
    assert trace.server is not None
    with pytest.raises(TraceError, match=f"no {missing} to replay on: name a configuration with -c"):
        of_journal(trace.server)


def test_a_journal_that_is_cut_still_ends_what_began(tmp_path: Path) -> None:
    arrived = [
        {"t": float(at), "kind": "arrived", "request": f"r-{at}", "model": "a", "decision": "granted"}
        for at in range(5)
    ]
    ended = [{"t": at + 10.0, "kind": "end", "request": f"r-{at}", "model": "a"} for at in range(5)]
    trace = read(written(tmp_path, records(*(one.items() for one in [*arrived, *ended]))), limit=2)
    assert [one.service for one in trace.requests] == [10.0, 10.0]
    assert note(trace, "cut after 2")


# -- access logs ------------------------------------------------------------------------------------------

LOG = '10.0.0.1 - - [10/Oct/2026:13:55:{second} +0000] "{line} HTTP/1.1" 200 512 "-" "curl/8" {rest}\n'


def test_an_access_log_in_the_combined_format(tmp_path: Path) -> None:
    lines = [
        LOG.format(second=36, line="POST /v1/chat/completions", rest="rt=2.500 model=qwen"),
        LOG.format(second=37, line="GET /health", rest="0.001"),
        LOG.format(second=38, line="POST /upstream/gemma/v1/chat/completions", rest="0.500"),
        LOG.format(second=39, line="POST /v1/embeddings?model=bge", rest='request_time="0.25"'),
        LOG.format(second=40, line="POST /login", rest=""),
        LOG.format(second=41, line="POST /api/chat", rest=""),
    ]
    trace = read(written(tmp_path, "".join([*lines, "half a li"])))
    assert trace.format == "access"
    found = [(round(one.at, 2), one.model, one.service) for one in trace.requests]
    assert found == [(0.0, "qwen", 2.5), (4.0, "gemma", 0.5), (5.25, "bge", 0.25), (7.5, "", None)]
    assert note(trace, "1 bad line was skipped, the first is line 7")
    assert "its request's end" in trace.notes[0]


def test_json_lines_of_a_proxy(tmp_path: Path) -> None:
    caddy = {"method": "POST", "uri": "/v1/messages"}
    text = records(
        {"ts": 1_700_000_010.0, "request": caddy, "duration": 4.0, "model": "a"}.items(),
        {"time": "2023-11-14T22:13:31Z", "path": "/v1/models", "method": "GET"}.items(),
        {"time": "2023-11-14T22:13:31Z", "request": "POST /api/generate HTTP/1.1", "latency_ms": 500}.items(),
        {"timestamp": 1_700_000_012.0, "model": "b", "prompt_tokens": 3, "completion_tokens": 4}.items(),
        {"time": "2023-11-14T22:13:33Z"}.items(),
        {"note": "no time"}.items(),
    )
    trace = read(written(tmp_path, text))
    assert trace.format == "json"
    assert [(one.at, one.model, one.service, one.tokens_in) for one in trace.requests] == [
        (0.0, "a", 4.0, 0),
        (4.5, "", 0.5, 0),
        (6.0, "b", None, 3),
    ]
    assert "2 bad lines" in note(trace, "bad")


# -- anything -----------------------------------------------------------------------------------------------

WORDS = ("arrived", "grant", "end", "refused", "start", "ready", "r-1", "a", "POST /v1/messages", "1.5")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=12,
)

RECORD = st.dictionaries(st.sampled_from(NAMES), JSON, min_size=2, max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(RECORD.map(json.dumps) | JSON.map(json.dumps) | st.text(max_size=40), max_size=8),
    st.sampled_from([*FORMATS, None]),
)
def test_nothing_but_a_trace_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], format: str | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "anything"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    try:
        trace = read(path, format=format)
    except TraceError:
        return
    assert trace.requests
    assert trace.requests[0].at == 0.0


def test_a_line_that_is_too_deep(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="is no JSON object"):
        read(written(tmp_path, "[" * 200_000), format="json")
