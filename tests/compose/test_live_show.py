"""Thirty-two clients go on while the configuration changes fifty times."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from compose.live_files import FileYard, file_yard
from gateway.live_yard import MB, fake, right_text
from modelyard import config
from waiting import until

CLIENTS = 32
CHANGES = 50
STILL = ("still", "quiet", "patient")  # no process of these is ever touched
EXPLAINED = {"model_removed", "model_not_found"}
DEVICES = {
    "gpu0": {"kind": "declared", "memory": 40 * MB, "reserve": 0},
    "gpu1": {"kind": "declared", "memory": 5 * MB, "reserve": 0},  # for one instance at a time
}
EXTRA = "models: {extra: {engine: fake, devices: gpu0, parameters: {memory: {accelerator: 1000000}}}}"


class Course:
    """The configuration as it is written by and by."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.moving = self.tight = 1
        self.patience = 20
        self.front = "still"
        self.guest = self.extra = True

    def models(self) -> dict[str, Any]:
        found = {
            "still": fake(slots=4),
            "quiet": fake(slots=4),
            "patient": fake(
                slots=4, patience=f"{self.patience}ms", priority=self.rng.choice(["low", "high"])
            ),
            "moving": fake(slots=self.moving),
            "tight": fake(parameters={"first_token_time": self.tight * 1e-6}),
        }
        if self.guest:
            found["guest"] = fake(slots=2)
        for name, model in found.items():
            model["devices"] = ["gpu1" if name == "tight" else "gpu0"]
        found[self.front]["aliases"] = ["front"]
        return found

    def step(self, number: int) -> str:
        """Change something; what it was."""
        what = ("policy", "version", "alias", "tight", "guest", "extra", "both")[number % 7]
        if what in ("policy", "both"):
            self.patience = 20 + number
        if what in ("version", "both"):
            self.moving = 1 + self.moving % 3
        if what == "tight":
            self.tight += 1
        if what == "alias":
            self.front = "quiet" if self.front == "still" else "still"
        if what == "guest":
            self.guest = not self.guest
        if what == "extra":
            self.extra = not self.extra
        return what


class Absence:
    """When a model was not there, at the longest."""

    def __init__(self) -> None:
        self._spans: list[list[float]] = []

    def begins(self) -> None:
        self._spans.append([time.monotonic(), float("inf")])

    def ends(self) -> None:
        self._spans[-1][1] = time.monotonic()

    def explains(self, begin: float, end: float) -> bool:
        return any(start <= end and stop >= begin for start, stop in self._spans)


class Crowd:
    """The clients: each asks on and on, and keeps what went wrong without a reason."""

    def __init__(self, yard: FileYard) -> None:
        self.yard = yard
        self.absent = {"guest": Absence(), "extra": Absence()}
        self.over = False
        self.served = 0
        self.explained = 0
        self.wrong: list[object] = []

    async def ask_on(self, number: int) -> None:
        rng = random.Random(number)
        names = (*STILL, "moving", "tight", "front", "guest", "extra")
        while not self.over:
            name, prompt = rng.choice(names), f"hi {number}"
            began = time.monotonic()
            if rng.random() < 0.5:
                answer = await self.yard.chat(name, prompt)
                code, text = answer.code, answer.text if answer.status == 200 else ""
            else:
                stream = await self.yard.stream(name, prompt)
                whole = stream.status == 200
                code = stream.code if whole else stream.refusal.code
                text = stream.text if whole and stream.done else ""
            self._judge(name, prompt, code, text, began)

    def _judge(self, name: str, prompt: str, code: str, text: str, began: float) -> None:
        real = ("still", "quiet") if name == "front" else (name,)
        if not code and text in {right_text(one, prompt, 4) for one in real}:
            self.served += 1
        elif code in EXPLAINED and name in self.absent:
            if self.absent[name].explains(began, time.monotonic()):
                self.explained += 1
            else:
                self.wrong.append((name, code, "while it was there"))
        else:
            self.wrong.append((name, code, text))


async def change(yard: FileYard, crowd: Crowd, course: Course, number: int) -> None:
    """One change: by turns through the control surface, and by the watched file alone."""
    what = course.step(number)
    gone, there = crowd.absent.get(what), getattr(course, what, True)
    if gone is not None and not there:
        gone.begins()
    extra = yard.folder / "more" / "extra.yaml"
    if course.extra:
        extra.write_text(EXTRA)
    else:
        extra.unlink(missing_ok=True)
    if number % 2:
        yard.write(course.models(), include=["more/*.yaml"], devices=DEVICES)
        written = await asyncio.to_thread(config.load, yard.path)
        await until(lambda: yard.yard.live.config == written)
    else:
        answer = await yard.change(course.models(), include=["more/*.yaml"], devices=DEVICES)
        assert answer.status == 200, answer.body
    if gone is not None and there:
        gone.ends()


async def refused(yard: FileYard) -> None:
    """An invalid change, in an included file: nothing happens."""
    broken = yard.folder / "more" / "broken.yaml"
    broken.write_text("models: {still: {engine: nothing}, moving:\n")
    before = yard.yard.live.config
    answer = await yard.apply()
    assert (answer.status, answer.code) == (400, "config_refused")
    assert str(broken) in answer.message
    assert yard.yard.live.config is before
    broken.unlink()


@pytest.mark.timeout(240)
async def test_no_request_fails_that_no_change_explains_and_untouched_processes_stay() -> None:
    course = Course(random.Random(4))
    extra = "more/extra.yaml"
    async with file_yard(course.models(), watch=True, devices=DEVICES, defaults={"max_wait": "60s"}) as yard:
        (yard.folder / "more").mkdir()
        (yard.folder / extra).write_text(EXTRA)
        answer = await yard.change(course.models(), include=["more/*.yaml"], devices=DEVICES)
        assert answer.status == 200, answer.body
        for model in STILL:
            await yard.load(model)
        pids = {model: yard.pids(model) for model in STILL}
        versions = {model: yard.yard.names.resolve(model).spec.version for model in STILL}
        crowd = Crowd(yard)
        clients = [asyncio.create_task(crowd.ask_on(number)) for number in range(CLIENTS)]
        seen: set[str] = set()
        for number in range(CHANGES):
            if number == CHANGES // 2:
                await refused(yard)
            else:
                await change(yard, crowd, course, number)
            seen.add(yard.yard.names.resolve("moving").spec.version)
            served = crowd.served
            await until(lambda served=served: crowd.served > served + 5 or crowd.wrong)  # type: ignore[misc]
            assert {model: yard.pids(model) for model in STILL} == pids
        crowd.over = True
        await asyncio.gather(*clients)
        assert crowd.wrong == []
        assert crowd.explained > 0
        assert crowd.served > 5 * CHANGES
        assert len(seen) == 3
        assert {model: yard.yard.names.resolve(model).spec.version for model in STILL} == versions
        ran = {instance.version.spec.model for instance in yard.state.instances.values()}
        assert ran >= set(STILL)
