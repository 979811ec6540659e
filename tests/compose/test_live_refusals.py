"""Changes that are refused: what is said, and that nothing has changed, not even half."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from structlog.testing import capture_logs

from compose.live_files import FileYard, file_yard
from gateway.live_yard import MB, Client, child_yard, fake, live_yard, sections, short_folder
from launchers.process_table import alive
from modelyard import config
from modelyard.compose.reading import NotRead, Origin, read
from modelyard.core import events as ev
from modelyard.core.actions import Action
from waiting import until

HOLLOW = {"engine": "fake"}  # takes no memory


def picture(yard: FileYard) -> tuple[object, ...]:
    """All that a refused change must leave alone."""
    state, live = yard.state, yard.yard.live
    return (
        id(live.config),
        yard.driver.devices.all,
        [(e.spec, e.policy, yard.yard.names.aliases_of(e)) for e in yard.yard.names.all()],
        [(v.key, v.policy, v.removed, list(v.instances)) for v in state.versions.values()],
        {name: account.device for name, account in state.ledger.devices.items()},
        state.queue_bound,
        yard.yard.server.limits,
        yard.pids("a"),
    )


async def looked_at(yard: FileYard, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait until the file was looked at so often."""
    look, looks = yard.yard.live._has_changed, 0

    async def counted() -> bool:
        nonlocal looks
        looks += 1
        return await look()

    with monkeypatch.context() as patch:
        patch.setattr(yard.yard.live, "_has_changed", counted)
        await until(lambda: looks >= times)


class TestWhatCannotBe:
    @pytest.mark.parametrize(
        ("change", "code", "said"),
        [
            ({"server": {"unix": "/tmp/other.sock"}}, "restart_needed", "server.unix: cannot change while"),
            (
                {"server": {"data_dir": "/tmp/other"}},
                "restart_needed",
                "server.data_dir: cannot change while",
            ),
            ({"journal": {"enabled": False}}, "restart_needed", "journal.bytes: cannot change while"),
            ({"devices": {}}, "restart_needed", "devices.gpu0.kind: cannot change while"),
            (
                {"keys": [{"name": "x", "scopes": ["admin"]}]},
                "config_refused",
                "keys[0]: needs either `key` or `hash`",
            ),
            ({"nonsense": 1}, "config_refused", "nonsense: is not a field here"),
            ({"include": ["gone.yaml"]}, "config_refused", "gone.yaml is not a file"),
            (
                {"models": {"a": fake(), "b": fake(11 * MB)}},
                "config_refused",
                "models.b: needs 11000000 bytes",
            ),
            ({"models": {"a": fake(11 * MB)}}, "config_refused", "models.a: needs 11000000 bytes"),
            (
                {"models": {"a": fake(6 * MB, pin=True), "b": fake(6 * MB, pin=True)}},
                "config_refused",
                "has to stay loaded",
            ),
            (
                {"models": {"a": {"engine": "fake", "devices": ["gpu7"]}}},
                "config_refused",
                "no device 'gpu7'",
            ),
            ({"memory": 3 * MB}, "config_refused", "models.a: needs 4000000 bytes"),
            (
                {"models": {"a": {"engine": "fake", "parameters": {"x": 1}}}},
                "config_refused",
                "models.a.param",
            ),
        ],
    )
    async def test_is_said_with_its_path_and_line_and_nothing_changes(
        self, change: dict[str, Any], code: str, said: str
    ) -> None:
        async with file_yard({"a": fake()}) as yard:
            await yard.load("a")
            before = picture(yard)
            models = change.pop("models", {"a": fake(keep_alive="1s", aliases=["x"]), "new": fake()})
            for dry_run in (True, False):
                yard.write(models, **change)
                answer = await yard.apply(dry_run=dry_run)
                assert (answer.status, answer.code) == (409 if code == "restart_needed" else 400, code)
                assert said in answer.message
                assert f"({yard.path}:" in answer.message
                assert picture(yard) == before
            assert said in yard.problem
            assert (await yard.chat("a")).status == 200
            assert (await yard.change({"a": fake()})).status == 200
            assert yard.problem == ""

    async def test_a_pin_that_comes_by_policy_is_checked_with_the_others(self) -> None:
        async with file_yard({"a": fake(6 * MB, pin=True), "b": fake(6 * MB)}) as yard:
            answer = await yard.change({"a": fake(6 * MB, pin=True), "b": fake(6 * MB, pin=True)})
            assert answer.code == "config_refused"
            assert "models.b: has to stay loaded (pin, min_replicas)" in answer.message

    async def test_what_was_wrong_before_does_not_stand_in_the_way_of_something_else(
        self, tmp_path: Path
    ) -> None:
        """Its file has vanished since the start: that is not what changes now."""
        from compose.test_refused_starts import GGUF

        source = tmp_path / "small.gguf"
        source.write_bytes(GGUF)
        lost = {"engine": "llamacpp", "source": str(source), "devices": ["ram"]}
        async with file_yard({"a": fake(), "lost": lost}) as yard:
            source.unlink()
            assert (await yard.change({"a": fake(pin=True), "lost": lost})).status == 200
            other = await yard.change({"a": fake(pin=True), "lost": {**lost, "slots": 2}})
            assert f"models.lost.source: {source} does not exist" in other.message


class TestFiles:
    async def test_an_error_in_an_included_file_is_told_with_its_line_to_all_who_look(self) -> None:
        async with file_yard({"a": fake()}, watch=True, include=["more/*.yaml"]) as yard:
            more = yard.folder / "more"
            more.mkdir()
            broken = more / "b.yaml"
            broken.write_text("models:\n  b:\n    engine: fake\n    slots: none\n")
            where = f"models.b.slots: is not a whole number ({broken}:4)"
            await until(lambda: yard.problem)
            assert yard.problem == where
            assert (await yard.http.get("/health")).json() == {"status": "degraded", "config": "refused"}
            assert "modelyard_config_refused 1.0" in (await yard.http.get("/metrics")).text
            told = (await yard.http.get("/admin/status")).json()["config"]
            assert (told["problem"], told["source"], told["watched"]) == (where, str(yard.path), True)
            assert told["refused_at"] >= told["since"]
            answer = await yard.apply()
            assert (answer.message, answer.body["error"]["param"]) == (where, "models.b.slots")
            assert (await yard.chat("a")).status == 200
            broken.write_text("models:\n  b:\n    engine: fake\n    slots: 2\n")
            await until(lambda: yard.knows(2))
            assert (await yard.http.get("/health")).json() == {"status": "ok"}
            assert "modelyard_config_refused 0.0" in (await yard.http.get("/metrics")).text

    async def test_it_is_said_once_and_not_at_every_look(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async with file_yard({"a": fake()}, watch=True, poll=0.01) as yard:
            with capture_logs() as logs:
                yard.path.write_text("models: [")
                await until(lambda: yard.problem)
                yard.path.with_name("other").write_text("x")
                await looked_at(yard, 10, monkeypatch)
            assert [line["event"] for line in logs].count("config.refused") == 1

    @pytest.mark.parametrize(
        "where", ["modelyard.config.build.validate", "modelyard.compose.preparing.entries_of"]
    )
    async def test_so_is_a_bug_until_the_file_is_another(
        self, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with file_yard({"a": fake()}, watch=True, poll=0.01) as yard:
            with monkeypatch.context() as patch, capture_logs() as logs:
                patch.setattr(where, lambda *_, **__: 1 // 0)
                yard.write({"a": fake(), "b": fake()})
                await until(lambda: yard.problem)
                await looked_at(yard, 10, monkeypatch)
            assert yard.problem == "a bug prevents it (ZeroDivisionError); see the log"
            assert [line["event"] for line in logs].count("config.failed") == 1
            yard.write({"a": fake(), "c": fake()})
            await until(lambda: yard.knows(2))
            assert yard.problem == ""

    async def test_an_order_that_is_refused_for_no_fault_of_the_file_leaves_it_to_the_watch(self) -> None:
        async with file_yard({"a": fake()}, watch=True, poll=0.05) as yard:
            plan = (await yard.post("/admin/plan", {"config": {}})).body["id"]
            yard.write({"a": fake(), "b": fake()})
            assert (await yard.post("/admin/apply-plan", {"id": plan})).code == "plan_stale"
            assert yard.problem == ""
            await until(lambda: yard.knows(2))

    async def test_an_order_to_read_again_what_was_not_read_from_a_file_is_answered(self) -> None:
        async with live_yard({"a": fake()}) as yard:
            with capture_logs() as logs:
                yard.yard.live._ordered.set()
                await until(lambda: not yard.yard.live._ordered.is_set())
            (line,) = (line for line in logs if line["event"] == "config.not_reloaded")
            assert line["problem"] == "What is served was not read from a file; name one."


class TestHalf:
    async def test_a_scheduler_that_fails_leaves_names_keys_and_policies_as_they_were(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with file_yard({"a": fake(), "b": fake()}) as yard:
            await yard.load("a")
            before = picture(yard)
            handle = yard.driver.scheduler.handle

            def fail(event: ev.Event, now: float) -> list[Action]:
                if isinstance(event, ev.Changed):
                    raise ZeroDivisionError
                return handle(event, now)

            with monkeypatch.context() as patch:
                patch.setattr(yard.driver.scheduler, "handle", fail)
                answer = await yard.change(
                    {"a": fake(pin=True), "b": fake(slots=2), "c": fake()},
                    server={"limits": {"body": 1000}},
                    memory=12 * MB,
                )
            assert answer.status == 500
            assert picture(yard) == before
            assert (await yard.chat("a")).status == 200
            assert (await yard.change({"a": fake(pin=True), "c": fake()})).status == 200
            assert (await yard.chat("c")).status == 200

    async def test_a_file_that_goes_and_comes_back(self) -> None:
        async with file_yard({"a": fake()}, watch=True) as yard:
            yard.path.unlink()
            await until(lambda: "No such file" in yard.problem)
            assert (await yard.chat("a")).status == 200
            yard.write({"a": fake(), "b": fake()})
            await until(lambda: yard.knows(2))

    async def test_one_that_is_half_written_is_not_taken_before_it_is_whole(self) -> None:
        """Each half of it is a valid configuration, and one of them has no model `a`."""
        async with file_yard({"a": fake(), "b": HOLLOW}, watch=True, poll=0.2) as yard:
            text = yard.text({"b": HOLLOW, "z": HOLLOW})
            head, _, tail = text.partition("  z:")
            seen: set[tuple[str, ...]] = set()
            with yard.path.open("w") as file:
                for piece in (head, "  z:", tail):
                    file.write(piece)
                    file.flush()
                    for _ in range(10):
                        await asyncio.sleep(0.01)
                        seen.add(tuple(entry.spec.model for entry in yard.yard.names.all()))
            assert seen == {("a", "b")}
            assert yard.problem == ""
            await until(lambda: [e.spec.model for e in yard.yard.names.all()] == ["b", "z"])

    async def test_reading_it_waits_for_the_end_and_takes_what_is_there_then(self) -> None:
        """An order that comes in the middle: the first half is no YAML."""
        with short_folder() as folder:
            path = folder / "yard.yaml"
            path.write_text("models: {a: {engine: fake")
            written = threading.Timer(0.1, lambda: path.write_text("models: {a: {engine: fake}}"))
            written.start()
            _, found = await read(path, Origin(poll=0.2), foreign=False)
            written.join()
            assert [model.spec.model for model in found.models] == ["a"]

    async def test_one_that_is_written_all_the_time_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("modelyard.compose.reading.AT_REST_WITHIN", 0.3)
        with short_folder() as folder:
            path = folder / "yard.yaml"
            over = threading.Event()

            def write_on() -> None:
                count = 0
                while not over.wait(0.005):
                    count += 1
                    path.write_text(f"# {count}\nmodels: {{a: {{engine: fake}}}}")

            writer = threading.Thread(target=write_on)
            writer.start()
            try:
                with pytest.raises(NotRead, match=r"has been written all the time for 0\.3 s"):
                    await read(path, Origin(poll=0.1), foreign=False)
            finally:
                over.set()
                writer.join()

    @pytest.mark.parametrize(
        "place",
        [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path), lambda path: path.symlink_to("no")],
    )
    @pytest.mark.parametrize("pattern", ["more.yaml", "*.yaml"])
    async def test_what_is_no_file_is_named_at_once(
        self, place: Callable[[Path], object], pattern: str
    ) -> None:
        with short_folder() as folder:
            path, more = folder / "yard", folder / "more.yaml"
            path.write_text(f"include: ['{pattern}']\nmodels: {{a: {{engine: fake}}}}")
            place(more)
            with pytest.raises(NotRead) as refused:
                await asyncio.wait_for(read(path, Origin(poll=0.1), foreign=False), 5.0)
            assert str(refused.value) == f"include[0]: {more} is not a file ({path}:1)"

    async def test_a_file_at_rest_is_not_waited_for(self) -> None:
        with short_folder() as folder:
            path = folder / "yard.yaml"
            path.write_text("models: {a: {engine: fake}}")
            found = path.stat().st_ctime
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("modelyard.compose.reading.time.time", lambda: found + 31.0)
                await asyncio.wait_for(read(path, Origin(poll=30.0), foreign=False), 5.0)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


class TestWhoseFiles:
    """The control surface must not have the server run the programs that somebody else wrote down."""

    @pytest.mark.parametrize(
        ("spoil", "said"),
        [
            (lambda path: path.chmod(0o666), "everybody may write it"),
            (lambda path: os.chown(path, 12345, -1), "belongs to another user"),
            (pipe, "is not a regular file"),
            (lambda path: path.unlink(), "No such file"),
        ],
    )
    async def test_another_file_has_to_be_the_servers_own(
        self, spoil: Callable[[Path], object], said: str
    ) -> None:
        if os.geteuid() != 0 and said == "belongs to another user":
            pytest.skip("only root may give a file away")
        async with file_yard({"a": fake()}) as yard:
            other = yard.folder / "other.yaml"
            other.write_text(yard.text({"b": fake()}))
            spoil(other)
            answer = await yard.apply(other)
            assert answer.code == "config_refused"
            assert said in answer.message
            assert yard.problem == "", "the file that is served is well"

    async def test_so_have_those_that_it_includes(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            other, evil = yard.folder / "other.yaml", yard.folder / "evil.yaml"
            other.write_text(yard.text({"b": fake()}, include=["evil.yaml"]))
            evil.write_text("models: {c: {engine: fake}}")
            evil.chmod(0o646)
            assert f"{evil} belongs to another user" in (await yard.apply(other)).message

    async def test_it_has_to_stay_so_once_it_is_served(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            other = yard.folder / "other.yaml"
            other.write_text(yard.text({"b": fake()}))
            assert (await yard.apply(other)).status == 200
            other.chmod(0o666)
            assert "everybody may write it" in (await yard.apply()).message
            assert "everybody may write it" in yard.problem

    async def test_a_text_is_not_taken(self) -> None:
        async with file_yard({"a": fake()}) as yard:
            assert (await yard.post("/admin/config", {"text": "models: {}"})).code == "invalid_request"
            answer = await yard.post("/admin/config", {"path": "modelyard.yaml"})
            assert (answer.code, answer.body["error"]["param"]) == ("config_refused", "path")
            form = await yard.http.post("/admin/config", content=b"path=/x")
            assert form.status_code == 415


class TestChild:
    async def test_sighup_has_the_file_read_again_and_an_address_is_not_changed(self) -> None:
        with short_folder() as folder:
            async with child_yard(folder, {"a": fake()}, options=["--no-watch"]) as yard:
                assert (await yard.chat("a")).status == 200
                pid = yard.engine()
                path = folder / "modelyard.yaml"
                path.write_text(sections(folder, {"a": fake(keep_alive="5m"), "b": fake()}))
                yard.signal(signal.SIGHUP)
                await until(lambda: '"config.changed"' in yard.output)
                assert (await yard.chat("b")).status == 200
                path.write_text(sections(folder, {"c": fake()}, server={"unix": f"{folder}/other.sock"}))
                yard.signal(signal.SIGHUP)
                await until(lambda: "server.unix: cannot change while the server runs" in yard.output)
                listed = (await yard.http.get("/v1/models")).json()["data"]
                assert [one["id"] for one in listed] == ["a", "b"]
                assert pid in {record["pid"] for record in yard.records()}
                yard.signal(signal.SIGTERM)
                assert await yard.exited() == 0

    async def test_a_terminal_that_is_closed_ends_it(self) -> None:
        with short_folder() as folder:
            path = folder / "modelyard.yaml"
            path.write_text(sections(folder, {"a": fake()}))
            words = [sys.executable, "-m", "modelyard", "serve", "-c", str(path)]
            # These tests may themselves be run with nohup.
            heard = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
            in_terminal = f"{heard}; import pty; pty.spawn({words!r})"
            terminal = subprocess.Popen(
                [sys.executable, "-c", in_terminal], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
            yard = Client(folder / "yard.sock")

            async def knows() -> list[str]:
                with suppress(httpx.TransportError):
                    return [one["id"] for one in (await yard.http.get("/v1/models")).json()["data"]]
                return []

            async def knows_two() -> bool:
                return await knows() == ["a", "b"]

            server: psutil.Process | None = None
            try:
                await until(knows)
                (server,) = psutil.Process(terminal.pid).children()
                path.write_text(sections(folder, {"a": fake(), "b": fake()}))
                server.send_signal(signal.SIGHUP)  # the terminal is there: it goes on
                await until(knows_two)
                terminal.kill()
                await until(lambda: not alive(server.pid))
            finally:
                terminal.kill()
                terminal.wait()
                if server is not None and server.is_running():
                    server.kill()
                await yard.close()


def test_what_is_read_again_is_adjusted_like_at_the_start(tmp_path: Path) -> None:
    """The port of the command line stands instead of the file's, also when that is read again."""
    from modelyard.cli.serving import _listening

    path = tmp_path / "yard.yaml"
    path.write_text("server: {port: 1234}")
    assert _listening(config.load(path), None, 99).server.port == 99
