"""A trace on the real scheduler: what becomes of it, what is told, drawn and advised."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from modelyard.core.types import Device, DeviceKind, Need, Policy, Share, Spec
from modelyard.errors import ModelyardError
from modelyard.sim import plot
from modelyard.sim.advise import advise
from modelyard.sim.choices import Theme
from modelyard.sim.inputs import Trace
from modelyard.sim.lines import Request
from modelyard.sim.replay import Run, as_json, fewest_loads, replay, thinned
from modelyard.sim.scene import GB, Loadable, Rules, Scene, load, synthetic
from modelyard.sim.strategies import OURS, STRATEGIES
from modelyard.sim.world import Job

TINY = Scene(
    (Device("gpu0", DeviceKind.DECLARED, 10 * GB, 10 * GB),),
    tuple(
        Loadable(
            Spec(name, "0" * 12, "fake"), Policy(keep_alive=60.0), Need((Share("accelerator", 8 * GB),)), 4.0
        )
        for name in ("a", "b")
    ),
)


def key(name: str) -> str:
    return Spec(name, "0" * 12, "fake").version


def random_jobs(scene: Scene, count: int, rate: float, seed: int = 1) -> list[Job]:
    dice, at, jobs = Random(seed), 0.0, []
    versions = [model.spec.version for model in scene.models]
    weights = [1 / (place + 1) for place in range(len(versions))]
    for _ in range(count):
        at += dice.expovariate(rate)
        jobs.append(Job(at, dice.choices(versions, weights)[0], dice.uniform(0.5, 3.0)))
    return jobs


def test_two_that_take_turns_are_told_in_full() -> None:
    jobs = [Job(0.0, key("a"), 2.0), Job(0.5, key("b"), 1.0), Job(100.0, key("a"), 1.0)]
    run = replay(TINY, jobs, STRATEGIES["first come"])
    # a: 4 s of loading, 2 s of service; b waits for both and for 0.3 s of stopping, then for its own load.
    told = as_json(run, 5.0, run.fewest_loads())
    assert told["loads"] == 3
    assert told["bytes_loaded"] == 24 * GB
    assert run.waits == pytest.approx([4.0, 4.3, 9.8])
    assert told["wait_max"] == pytest.approx(9.8)
    assert told["within_target"] == pytest.approx(2 / 3)
    assert told["fewest_loads"] == 2  # b first, then a, which stays
    assert told["refused"] == {}
    assert told["seconds"] == pytest.approx(105.3)
    device = told["devices"]["gpu0"]
    assert device["memory_peak"] == 8 * GB
    assert device["held_seconds"] == pytest.approx(6.3 + (105.3 - 6.3))
    first = run.stays[0]
    assert first.model == "a"
    assert [first.start, first.ready, first.stop, first.gone] == pytest.approx([0.0, 4.0, 6.0, 6.3])


def test_idle_time_is_not_held() -> None:
    run = replay(TINY, [Job(0.0, key("a"), 1.0), Job(1000.0, key("a"), 1.0)], OURS)
    assert run.loads == 2
    assert run.held("gpu0") == pytest.approx(4 + 1 + 60 + 0.3 + 4 + 1)
    assert run.mean_memory("gpu0") == pytest.approx(8 * GB * run.held("gpu0") / 1005, rel=1e-6)


def test_who_is_refused_counts_as_not_served_in_time() -> None:
    models = tuple(
        replace(model, policy=replace(model.policy, queue_bound=1), load=20.0) for model in TINY.models
    )
    run = replay(replace(TINY, models=models), [Job(0.1 * n, key("a"), 1.0) for n in range(5)], OURS)
    assert run.refused == {"queue_full": 4}
    assert run.within(100.0) == pytest.approx(1 / 5)


def test_what_is_preloaded_waits_for_nothing() -> None:
    scene = replace(TINY, preload=(key("b"), key("a")))  # the second does not fit any more
    run = replay(scene, [Job(10.0, key("b"), 1.0)], OURS)
    assert run.waits == [0.0]
    assert run.loads == 1


def test_the_same_seed_gives_the_same_run() -> None:
    trace = Trace("t", "csv", [Request(n * 0.7, 400, 100) for n in range(300)])
    scene = synthetic([f"m{n}" for n in range(8)], 20 * GB)

    def told(seed: int) -> dict[str, object]:
        return as_json(
            replay(scene, load(trace, scene, seed=seed, skew=1.0, stretch=2.0).jobs, OURS), 10, None
        )

    assert told(1) == told(1)
    assert told(1) != told(2)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=lambda one: one.name)
def test_no_strategy_does_with_fewer_loads_than_the_bound(strategy: object) -> None:
    scene = synthetic([f"m{n}" for n in range(10)], 24 * GB)
    run = replay(scene, random_jobs(scene, 400, 1.0), strategy)  # type: ignore[arg-type]
    assert 10 <= run.fewest_loads() <= run.loads
    served = [record.job for record in run.records if record.finished_at is not None]
    assert fewest_loads(scene, served, 600.0) <= run.fewest_loads()


# -- from a trace to jobs -----------------------------------------------------------------------------------


def test_models_by_name_alias_and_version_and_those_that_are_unknown() -> None:
    models = (replace(TINY.models[0], aliases=("first",)), TINY.models[1])
    names = ["a", "first", f"b@{'0' * 12}", "other", "other"]
    requests = [Request(10.0 + n, 100, 100, name) for n, name in enumerate(names)]
    found = load(Trace("t", "csv", requests), replace(TINY, models=models), seed=1, skew=1.0, stretch=2.0)
    assert [(job.at, job.version) for job in found.jobs] == [
        (0.0, key("a")),
        (2.0, key("a")),
        (4.0, key("b")),
    ]
    assert found.skipped == 2
    assert "2 requests left out for models that are not configured, or without a size: other" in found.assumed
    assert "times are stretched by 2" in found.assumed


def test_service_as_recorded_by_rule_or_as_usual() -> None:
    requests = [
        Request(0.0, model="a", service=3.0),
        Request(1.0, 1000, 100, "a"),
        Request(2.0, model="a"),
        Request(3.0, model="b"),
    ]
    found = load(Trace("t", "json", requests), TINY, seed=1, skew=1.0, stretch=1.0)
    assert [job.service for job in found.jobs] == pytest.approx([3.0, 1.2, 3.0, 3.0])
    assert any("2 requests are unknown" in text for text in found.assumed)
    assert "service 0.2 ms per token in + 10 ms per token out" in str(Rules())


def test_zipf_prefers_the_first() -> None:
    trace = Trace("t", "csv", [Request(float(n), 1, 1) for n in range(3000)])
    jobs = load(trace, TINY, seed=3, skew=1.0, stretch=1.0).jobs
    assert sum(job.version == key("a") for job in jobs) / 3000 == pytest.approx(2 / 3, abs=0.03)


def test_a_long_series_keeps_its_peaks() -> None:
    steps = [(float(n), n % 97) for n in range(10_000)]
    thin = thinned(steps, 100)
    assert len(thin) <= 100
    assert max(size for _, size in thin) == 96


# -- pictures -----------------------------------------------------------------------------------------------


def some_runs() -> list[Run]:
    scene = synthetic([f"m<{n}>" for n in range(30)], 24 * GB)
    return [replay(scene, random_jobs(scene, 300, 1.0), STRATEGIES[name]) for name in ("LRU", "ours")]


def test_a_picture_shows_every_strategy_in_both_themes() -> None:
    runs = some_runs()
    text = plot.svg(runs, 10.0, title="a & b")
    root = ET.fromstring(text)
    shown = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"LRU", "ours", "gpu0", "m<0>", "Replay of a & b"} <= set(shown)
    assert sum(str(text).endswith(" others") for text in shown) == 2
    assert "prefers-color-scheme:dark" in text
    boxes = [
        one.get("d") for one in root.iter("{http://www.w3.org/2000/svg}path") if one.get("class") == "loading"
    ]
    assert all(box and box.count("z") > 10 for box in boxes)
    for name in ("nan", "inf"):
        assert name not in text.replace("font-family:system-ui", "")


@pytest.mark.parametrize("theme", [Theme.LIGHT, Theme.DARK])
def test_one_theme_asks_nothing_of_the_system(theme: Theme) -> None:
    text = plot.svg(some_runs(), 10.0, title="t", theme=theme)
    assert "prefers-color-scheme" not in text
    assert (plot.DARK if theme is Theme.DARK else plot.LIGHT)["bg"] in text


def test_a_picture_of_nothing_but_refusals() -> None:
    models = tuple(replace(model, need=Need((Share("accelerator", 99 * GB),))) for model in TINY.models)
    run = replay(replace(TINY, models=models), [Job(0.0, key("a"), 1.0)], OURS)
    assert run.refused == {"never_fits": 1}
    ET.fromstring(plot.svg([run], 10.0, title="t"))


def test_what_cannot_be_drawn_is_said_before_anything_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelyardError, match=r"a picture is an \.svg or a \.png"):
        plot.check(tmp_path / "a.gif")
    with pytest.raises(ModelyardError, match="there is no folder"):
        plot.check(tmp_path / "none" / "a.svg")

    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(plot, "import_module", missing)
    with pytest.raises(ModelyardError, match=r"modelyard\[plot\]"):
        plot.check(tmp_path / "a.png")
    plot.check(tmp_path / "a.svg")


def test_a_png_is_made_by_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def svg_to_bytes(svg_string: str, zoom: int) -> bytes:
            assert "prefers-color-scheme" not in svg_string
            return b"\x89PNG"

    monkeypatch.setattr(plot, "import_module", lambda name: Library)
    plot.write(tmp_path / "a.png", some_runs()[:1], 10.0, title="t")
    assert (tmp_path / "a.png").read_bytes() == b"\x89PNG"


# -- advice -------------------------------------------------------------------------------------------------


def test_memory_that_is_short_is_advised() -> None:
    scene = synthetic([f"m{n}" for n in range(3)], 8 * GB, sizes=[4 * GB])
    jobs = random_jobs(scene, 300, 0.2)
    told: list[str] = []
    advice = advise(scene, jobs, OURS, 10.0, 30, told.append)
    best = advice.helpful[0]
    assert best.change.text == "devices.gpu0: 4.0 GB more memory"
    assert best.result.loads == 3 < advice.base.loads
    assert len(told) == len(advice.tried)
    assert [one.gain for one in advice.helpful] == sorted((one.gain for one in advice.helpful), reverse=True)


def test_nothing_helps_where_nothing_is_wrong() -> None:
    scene = synthetic(["m0", "m1"], 60 * GB)
    advice = advise(scene, random_jobs(scene, 200, 0.5), OURS, 10.0, 30, lambda _: None)
    assert advice.base.loads == 2
    assert advice.helpful == []
    assert advice.tried


def test_keep_alive_that_is_too_short_is_advised() -> None:
    models = tuple(replace(model, policy=replace(model.policy, keep_alive=1.0)) for model in TINY.models)
    jobs = [Job(30.0 * number, key("a"), 1.0) for number in range(40)]
    advice = advise(replace(TINY, models=models), jobs, OURS, 3.0, 30, lambda _: None)
    assert any("keep_alive" in one.change.text for one in advice.helpful)


def test_no_more_simulations_than_allowed() -> None:
    scene = synthetic([f"m{n}" for n in range(6)], 8 * GB, sizes=[4 * GB])
    advice = advise(scene, random_jobs(scene, 100, 0.2), OURS, 10.0, 2, lambda _: None)
    assert len(advice.tried) == 2
    assert advice.left > 0


def test_a_pin_is_advised_for_each_that_idles_out() -> None:
    """Two models that idle out between their requests, on a device each: both want a pin."""
    policy = Policy(keep_alive=5.0)
    models = tuple(replace(model, policy=policy) for model in TINY.models)
    device = TINY.devices[0]
    scene = replace(TINY, models=models, devices=(device, replace(device, id="gpu1")))
    jobs = [Job(40.0 * n, key(name), 1.0) for n in range(60) for name in ("a", "b")]
    advice = advise(scene, jobs, OURS, 3.0, 60, lambda _: None)
    texts = {one.change.text for one in advice.helpful}
    assert {"models.a: pin: true", "models.b: pin: true"} <= texts
    assert advice.base.loads == 120


def test_more_copies_are_tried_for_a_crowd_but_no_slots_out_of_nothing() -> None:
    scene = synthetic(["m0"], 8 * GB, sizes=[4 * GB], slots=1)
    jobs = [Job(10.0 + n, scene.models[0].spec.version, 3.0) for n in range(40)]
    tried = [one.change.text for one in advise(scene, jobs, OURS, 3.0, 60, lambda _: None).tried]
    assert "models.m0: max_replicas: 2" in tried
    assert not [text for text in tried if "slots" in text]
