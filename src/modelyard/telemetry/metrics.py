"""Every metric of Modelyard, declared once; the numbers behind them; the page that Prometheus scrapes.

Owned by compose, one `Metrics` per server. The gateway counts requests on a model's `Traffic`, the driver and
its notes count the rest, gauges are read from a snapshot when somebody scrapes. All of it happens on one
event loop: nothing here locks. Label values are names of configured models and our own closed lists of
words, never text of a client. docs/reference/metrics.md is generated from `DECLARED`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric

from modelyard.core.actions import Note
from modelyard.telemetry.series import Counts, Declared, Duration, Histogram, Kind, LabelValues, gauge

__all__ = ["CONTENT_TYPE_LATEST", "DECLARED", "NO_MODEL", "Metrics", "Snapshot", "Traffic"]

NO_MODEL = ""  # the model of a request that came to none

WAIT_BUCKETS = (0.001, 0.005, 0.02, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)
LOAD_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)

DECLARED: list[Declared] = []


def _declare(
    name: str, kind: Kind, help_text: str, *labels: str, buckets: tuple[float, ...] = ()
) -> Declared:
    declared = Declared(f"modelyard_{name}", kind, help_text, labels, buckets)
    DECLARED.append(declared)
    return declared


REQUESTS = _declare(
    "requests_total",
    Kind.COUNTER,
    "Requests to the APIs of models that were let in and ended, by model (empty: it failed before it came to "
    "one), kind of API path and outcome: ok, cancelled, or an error code.",
    "model",
    "path",
    "outcome",
)
WAIT = _declare(
    "request_wait_seconds",
    Kind.HISTOGRAM,
    "Time from a request's arrival until it held a slot, loading and swapping included.",
    "model",
    buckets=WAIT_BUCKETS,
)
FIRST_TOKEN = _declare(
    "first_token_seconds",
    Kind.HISTOGRAM,
    "Time from a request's arrival until the first byte of its answer came from the engine.",
    "model",
    buckets=FIRST_TOKEN_BUCKETS,
)
STREAM_CHUNKS = _declare(
    "stream_chunks_total", Kind.COUNTER, "Pieces of streamed answers passed on to clients.", "model"
)
STREAM_BYTES = _declare(
    "stream_bytes_total", Kind.COUNTER, "Bytes of streamed answers passed on to clients.", "model"
)
TOKENS = _declare(
    "tokens_total",
    Kind.COUNTER,
    "Tokens as engines counted them; direction is in (prompt) or out (generated).",
    "model",
    "direction",
)
RETRIES = _declare(
    "retries_total",
    Kind.COUNTER,
    "Attempts made after an earlier attempt of the same request had failed.",
    "model",
)
REJECTIONS = _declare(
    "rejections_total",
    Kind.COUNTER,
    "Requests for a model that got no slot of it, by error code. They are not in the wait histogram.",
    "model",
    "code",
)
BROKEN_PROMISES = _declare(
    "broken_promises_total",
    Kind.COUNTER,
    "Requests that were admitted and yet not served within their max_wait. Should stay 0.",
    "model",
)
LOADS = _declare(
    "load_seconds",
    Kind.HISTOGRAM,
    "Time from the start of an instance until it was ready (outcome ready) or given up (outcome failed), or "
    "until one that slept was ready again (outcome woken).",
    "model",
    "outcome",
    buckets=LOAD_BUCKETS,
)
SWAPS = _declare(
    "swaps_total",
    Kind.COUNTER,
    "Starts of this model that others had to leave for; reason: idle (they were) or drained (one was busy).",
    "model",
    "reason",
)
EVICTIONS = _declare(
    "evictions_total", Kind.COUNTER, "Instances of this model that had to leave for another model.", "model"
)
ENGINE_FAILURES = _declare(
    "engine_failures_total",
    Kind.COUNTER,
    "Instances that failed to start or left by themselves, by cause.",
    "model",
    "cause",
)
RESTARTS = _declare(
    "launcher_restarts_total",
    Kind.COUNTER,
    "Instances that were started again after an instance of the same model had failed.",
    "model",
)
SCHEDULER = _declare(
    "scheduler_event_seconds", Kind.SUMMARY, "Time that the scheduler spent on its events, and their number."
)
INSTANCES = _declare("instances", Kind.GAUGE, "Instances by model and lifecycle state.", "model", "state")
QUEUED = _declare("queued_requests", Kind.GAUGE, "Requests that wait for a slot of this model.", "model")
LEASES = _declare("leases", Kind.GAUGE, "Requests that hold a slot of this model.", "model")
DEVICE_BYTES = _declare(
    "device_bytes",
    Kind.GAUGE,
    "Memory of a device: budget (what instances may reserve), reserved (by agreement), observed (measured), "
    "foreign (used by others), free (what a new instance may take; negative when others took it).",
    "device",
    "kind",
)
BATCH_SIZE = _declare(
    "engine_batch_size",
    Kind.GAUGE,
    "Requests that an instance computes in one step, as its engine says; the mean of its version's.",
    "model",
    "version",
)
KV_USE = _declare(
    "engine_kv_use_ratio",
    Kind.GAUGE,
    "The part of the KV cache that is in use, from 0 to 1, likewise.",
    "model",
    "version",
)
ACCEPTED = _declare(
    "engine_speculation_accepted_ratio",
    Kind.GAUGE,
    "The part of speculated tokens that were right, from 0 to 1, likewise.",
    "model",
    "version",
)
DEVICE_CLOSED = _declare(
    "device_closed", Kind.GAUGE, "1 while nothing is placed on a device: it is lost, or fenced.", "device"
)
CONFIG_REFUSED = _declare(
    "config_refused",
    Kind.GAUGE,
    "1 when the configuration's file was refused when it was read last; what was served before still is.",
)


class Traffic:
    """The counts of one model on the path of its requests. `chunks`, `bytes`, `tokens_in` and `tokens_out`
    are added to directly; they only grow."""

    __slots__ = ("bytes", "chunks", "ended", "first_token", "tokens_in", "tokens_out", "wait")

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.wait = metrics.waits.of(model)
        self.first_token = metrics.first_tokens.of(model)
        self.ended: dict[tuple[str, str], int] = {}
        self.chunks = 0
        self.bytes = 0
        self.tokens_in = 0
        self.tokens_out = 0

    def end(self, path: str, outcome: str = "ok") -> None:
        """Count a request that ended, by kind of API path (`chat`) and outcome (an error code, or ok)."""
        key = (path, outcome)
        self.ended[key] = self.ended.get(key, 0) + 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What gauges show: instances by (model, state), queued requests and leases by model, device bytes by
    (device, kind), and what engines say of their work by (model, version)."""

    instances: Mapping[tuple[str, str], int] = field(default_factory=dict)
    queued: Mapping[str, int] = field(default_factory=dict)
    leases: Mapping[str, int] = field(default_factory=dict)
    devices: Mapping[tuple[str, str], int] = field(default_factory=dict)
    config_refused: bool = False
    closed: Mapping[str, bool] = field(default_factory=dict)
    batch: Mapping[tuple[str, str], float] = field(default_factory=dict)
    kv_use: Mapping[tuple[str, str], float] = field(default_factory=dict)
    accepted: Mapping[tuple[str, str], float] = field(default_factory=dict)


class Metrics:
    """All counts of one server.

    `snapshot` is called at each scrape; whoever has something to show sets it.
    """

    def __init__(self) -> None:
        self.snapshot: Callable[[], Snapshot] = Snapshot
        self.waits = Histogram(WAIT)
        self.first_tokens = Histogram(FIRST_TOKEN)
        self.loads = Histogram(LOADS)
        self.retries = Counts(RETRIES)
        self.rejections = Counts(REJECTIONS)
        self.broken_promises = Counts(BROKEN_PROMISES)
        self.swaps = Counts(SWAPS)
        self.evictions = Counts(EVICTIONS)
        self.engine_failures = Counts(ENGINE_FAILURES)
        self.restarts = Counts(RESTARTS)
        self.scheduler = Duration(SCHEDULER)
        self._traffic: dict[str, Traffic] = {}
        self._failed: set[str] = set()
        self._room_made: dict[str, str] = {}  # models that others left for: the reason of their next start
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def traffic(self, model: str) -> Traffic:
        """The counts of a configured model (or NO_MODEL); always the same object for the same name."""
        found = self._traffic.get(model)
        if found is None:
            found = self._traffic[model] = Traffic(self, model)
        return found

    def count(self, note: Note) -> None:
        """Count what a note of the scheduler tells: loads, evictions, swaps, failures and restarts."""
        fields = dict(note.fields)
        model = str(fields.get("model", NO_MODEL))
        if note.kind == "ready":
            self.loads.of(model, "woken" if "rung" in fields else "ready").observe(float(fields["seconds"]))
        elif note.kind in ("start", "wake"):
            if model in self._room_made:
                self.swaps.add(model, self._room_made.pop(model))
            if model in self._failed:
                self._failed.discard(model)
                self.restarts.add(model)
        elif note.kind == "failed" and "model" in fields:
            self._failed.add(model)
            self.engine_failures.add(model, str(fields["cause"]))
            if "seconds" in fields:
                self.loads.of(model, "failed").observe(float(fields["seconds"]))
        elif note.kind == "leave" and fields.get("for"):
            self.evictions.add(model)
            winner = str(fields["for"])
            if fields["running"] or winner not in self._room_made:
                self._room_made[winner] = "drained" if fields["running"] else "idle"

    def render(self) -> bytes:
        """The page in Prometheus' text format; its type is CONTENT_TYPE_LATEST."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """The families, in the order of their declaration. Called by prometheus-client."""
        traffic = self._traffic
        yield self._family(
            REQUESTS,
            {(model, *key): n for model, one in traffic.items() for key, n in one.ended.items()},
        )
        yield self.waits.family()
        yield self.first_tokens.family()
        yield self._family(STREAM_CHUNKS, {(model,): one.chunks for model, one in traffic.items()})
        yield self._family(STREAM_BYTES, {(model,): one.bytes for model, one in traffic.items()})
        tokens: dict[LabelValues, int] = {}
        for model, one in traffic.items():
            tokens[model, "in"], tokens[model, "out"] = one.tokens_in, one.tokens_out
        yield self._family(TOKENS, tokens)
        for counts in (self.retries, self.rejections, self.broken_promises):
            yield counts.family()
        yield self.loads.family()
        for counts in (self.swaps, self.evictions, self.engine_failures, self.restarts):
            yield counts.family()
        yield self.scheduler.family()
        now = self.snapshot()
        yield gauge(INSTANCES, now.instances.items())
        yield gauge(QUEUED, (((model,), n) for model, n in now.queued.items()))
        yield gauge(LEASES, (((model,), n) for model, n in now.leases.items()))
        yield gauge(DEVICE_BYTES, now.devices.items())
        yield gauge(BATCH_SIZE, now.batch.items())
        yield gauge(KV_USE, now.kv_use.items())
        yield gauge(ACCEPTED, now.accepted.items())
        yield gauge(DEVICE_CLOSED, (((device,), int(closed)) for device, closed in now.closed.items()))
        yield gauge(CONFIG_REFUSED, [((), int(now.config_refused))])

    @staticmethod
    def _family(declared: Declared, values: dict[LabelValues, int]) -> Metric:
        counts = Counts(declared)
        counts.values = values
        return counts.family()
