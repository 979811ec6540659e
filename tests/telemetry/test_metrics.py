"""The metrics page: what is counted is what is shown, and what is declared is what exists."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families as parse

from modelyard.core.actions import Note
from modelyard.telemetry.metrics import DECLARED, NO_MODEL, Metrics, Snapshot
from modelyard.telemetry.series import Distribution, Kind


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    page = metrics.render().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(page)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, tuple(sorted(labels.items()))))


def test_a_request_shows_in_every_metric_of_its_model() -> None:
    metrics = Metrics()
    traffic = metrics.traffic("qwen")
    traffic.wait.observe(0.3)
    traffic.first_token.observe(0.7)
    traffic.chunks += 3
    traffic.bytes += 600
    traffic.tokens_in += 40
    traffic.tokens_out += 3
    traffic.end("chat")
    traffic.end("chat", "engine_died")
    assert value(metrics, "modelyard_requests_total", model="qwen", path="chat", outcome="ok") == 1
    assert value(metrics, "modelyard_requests_total", model="qwen", path="chat", outcome="engine_died") == 1
    assert value(metrics, "modelyard_request_wait_seconds_sum", model="qwen") == 0.3
    assert value(metrics, "modelyard_request_wait_seconds_bucket", model="qwen", le="0.25") == 0
    assert value(metrics, "modelyard_request_wait_seconds_bucket", model="qwen", le="0.5") == 1
    assert value(metrics, "modelyard_first_token_seconds_count", model="qwen") == 1
    assert value(metrics, "modelyard_stream_chunks_total", model="qwen") == 3
    assert value(metrics, "modelyard_stream_bytes_total", model="qwen") == 600
    assert value(metrics, "modelyard_tokens_total", model="qwen", direction="in") == 40
    assert value(metrics, "modelyard_tokens_total", model="qwen", direction="out") == 3


def test_a_bound_belongs_to_its_bucket_and_what_is_over_all_bounds_counts() -> None:
    distribution = Distribution((1.0, 2.0))
    for seconds in (0.5, 1.0, 2.0, 9.0):
        distribution.observe(seconds)
    assert distribution.cumulative() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert distribution.total == 12.5


def test_the_traffic_of_a_model_is_one_object() -> None:
    metrics = Metrics()
    assert metrics.traffic("a") is metrics.traffic("a")
    assert metrics.traffic("a") is not metrics.traffic(NO_MODEL)


def test_instances_of_metrics_do_not_share_counts() -> None:
    first, second = Metrics(), Metrics()
    first.retries.add("a")
    assert value(first, "modelyard_retries_total", model="a") == 1
    assert value(second, "modelyard_retries_total", model="a") is None


def test_notes_are_counted() -> None:
    metrics = Metrics()
    for note in (
        Note("start", "a-1", "1 request waiting", (("model", "a"), ("bytes", 5))),
        Note("ready", "a-1", "ready", (("model", "a"), ("seconds", 2.0))),
        Note("leave", "b-1", "idle for its keep-alive", (("model", "b"), ("running", 0))),
        Note("failed", "b-2", "crashed", (("model", "b"), ("cause", "crashed"), ("seconds", 4.0))),
        Note("start", "b-3", "1 request waiting", (("model", "b"), ("bytes", 5))),
        Note("start", "b-4", "grows", (("model", "b"), ("bytes", 5))),
        Note("failed", "b@1234", "no such file", (("cause", "source_not_found"),)),
    ):
        metrics.count(note)
    assert value(metrics, "modelyard_load_seconds_sum", model="a", outcome="ready") == 2.0
    assert value(metrics, "modelyard_load_seconds_sum", model="b", outcome="failed") == 4.0
    assert value(metrics, "modelyard_evictions_total", model="b") is None
    assert value(metrics, "modelyard_swaps_total", model="b", reason="idle") is None
    assert value(metrics, "modelyard_engine_failures_total", model="b", cause="crashed") == 1
    assert value(metrics, "modelyard_launcher_restarts_total", model="b") == 1
    assert value(metrics, "modelyard_launcher_restarts_total", model="a") is None


def test_a_swap_is_one_start_however_many_leave_for_it() -> None:
    metrics = Metrics()
    start = Note("start", "b-1", "1 request waiting", (("model", "b"), ("bytes", 5)))
    for instance, model, running in (("a-1", "a", 0), ("c-1", "c", 2), ("c-2", "c", 0)):
        fields = (("model", model), ("running", running), ("for", "b"))
        metrics.count(Note("leave", instance, "makes room for b", fields))
    assert value(metrics, "modelyard_swaps_total", model="b", reason="drained") is None
    metrics.count(start)
    metrics.count(start)
    assert value(metrics, "modelyard_evictions_total", model="a") == 1
    assert value(metrics, "modelyard_evictions_total", model="c") == 2
    assert value(metrics, "modelyard_swaps_total", model="b", reason="drained") == 1
    assert value(metrics, "modelyard_swaps_total", model="b", reason="idle") is None


def test_gauges_are_read_at_the_scrape() -> None:
    metrics = Metrics()
    queued = {"a": 2}
    metrics.snapshot = lambda: Snapshot(
        instances={("a", "ready"): 1},
        queued=queued,
        leases={"a": 4},
        devices={("ram", "free"): -5},
    )
    assert value(metrics, "modelyard_queued_requests", model="a") == 2
    queued["a"] = 7
    assert value(metrics, "modelyard_queued_requests", model="a") == 7
    assert value(metrics, "modelyard_instances", model="a", state="ready") == 1
    assert value(metrics, "modelyard_leases", model="a") == 4
    assert value(metrics, "modelyard_device_bytes", device="ram", kind="free") == -5


def test_the_scheduler_shows_its_events_and_seconds() -> None:
    metrics = Metrics()
    metrics.scheduler.count += 3
    metrics.scheduler.seconds += 0.25
    assert value(metrics, "modelyard_scheduler_event_seconds_count") == 3
    assert value(metrics, "modelyard_scheduler_event_seconds_sum") == 0.25


def test_the_page_holds_exactly_what_is_declared() -> None:
    shown = {}
    for line in Metrics().render().decode().splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            shown[name] = Kind(kind)
    assert shown == {declared.name: declared.kind for declared in DECLARED}
    assert len(DECLARED) == len({declared.name for declared in DECLARED})
    for declared in DECLARED:
        assert declared.name.startswith("modelyard_")
        assert declared.name.endswith("_total") == (declared.kind is Kind.COUNTER)
        assert (declared.kind is Kind.HISTOGRAM) == bool(declared.buckets)
        assert declared.help.endswith(".")
