"""The local launcher with real processes: the contract, and what only processes can do."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path

import pytest
import uvloop
from structlog.testing import capture_logs

from launchers.contract import Exits, LauncherContract
from launchers.engine_scripts import DAEMON, HOT_POTATO, PATIENT, STUBBORN, UNMARKED_DAEMON, launch, script
from launchers.process_table import alive, open_fds, with_mark_of, zombies
from modelyard.core.types import Address
from modelyard.engines.base import Command, Exit
from modelyard.errors import ConfigError
from modelyard.launchers import state
from modelyard.launchers.base import Launch, LaunchFailed
from modelyard.launchers.local import LocalLauncher
from modelyard.launchers.state import Record
from waiting import until


@pytest.fixture
async def launcher(tmp_path: Path) -> AsyncIterator[LocalLauncher]:
    local = LocalLauncher(tmp_path / "data")
    assert await local.open() == []
    yield local
    await local.close()
    assert with_mark_of(tmp_path) == []


class TestContract(LauncherContract):
    """Inherits every test."""


@pytest.mark.parametrize("lines", [1, 500, 10_000])
async def test_a_tail_has_as_many_whole_lines_as_were_asked_for(
    launcher: LocalLauncher, tmp_path: Path, lines: int
) -> None:
    text = "for n in range(12_000): print(f'line {n} ' + 'x' * 70)"
    exits = Exits(launcher)
    await launcher.start(launch("one", script(tmp_path, text)))
    await until(lambda: exits.seen)
    await launcher.stop("one", grace=0)
    told = launcher.tail("one", lines).split("\n")
    assert told == [f"line {n} " + "x" * 70 for n in range(12_000 - lines, 12_000)]


async def test_a_tail_of_fewer_lines_than_asked_for_is_the_whole(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    exits = Exits(launcher)
    await launcher.start(launch("one", script(tmp_path, "print('x' * 300_000 + '\\nend')")))
    await until(lambda: exits.seen)
    await launcher.stop("one", grace=0)
    assert launcher.tail("one", 5).split("\n") == ["x" * 300_000, "end"]


async def test_a_command_that_cannot_be_made_leaves_no_port(launcher: LocalLauncher) -> None:
    def command(address: Address) -> Command:
        raise KeyError("a file of no role")

    with pytest.raises(KeyError):
        await launcher.start(Launch(instance="one", command=command, unix=False))
    assert launcher._ports == set()
    with pytest.raises(KeyError):
        await launcher.start(Launch(instance="one", command=command, unix=False))


# -- whole trees ----------------------------------------------------------------------------------------


async def daemon_pid(path: Path) -> int:
    """The pid that the daemon wrote."""
    file = Path(f"{path}.pid")
    await until(file.exists)
    return int(file.read_text())


@pytest.mark.parametrize("text", [DAEMON, UNMARKED_DAEMON], ids=["marked", "unmarked"])
async def test_stop_reaches_a_detached_grandchild(launcher: LocalLauncher, tmp_path: Path, text: str) -> None:
    await launcher.start(launch("one", script(tmp_path, text, str(tmp_path / "daemon"))))
    daemon = await daemon_pid(tmp_path / "daemon")
    assert daemon in launcher.pids("one")
    await launcher.stop("one", grace=0.1)
    assert not alive(daemon)


async def test_what_an_engine_leaves_behind_goes_with_it(launcher: LocalLauncher, tmp_path: Path) -> None:
    exits = Exits(launcher)
    await launcher.start(launch("one", script(tmp_path, DAEMON, str(tmp_path / "daemon"))))
    daemon = await daemon_pid(tmp_path / "daemon")
    os.kill(launcher.pids("one")[0], signal.SIGKILL)
    await until(lambda: not alive(daemon))
    assert exits.seen == [("one", Exit(code=None, signal=9))]


async def test_stop_reaches_processes_that_fork_without_end(launcher: LocalLauncher, tmp_path: Path) -> None:
    await launcher.start(launch("one", script(tmp_path, HOT_POTATO)))
    await until(lambda: "up" in launcher.tail("one"))
    await launcher.stop("one", grace=0.05)
    assert with_mark_of(tmp_path) == []


@pytest.mark.parametrize("text", [STUBBORN, DAEMON], ids=["stubborn", "daemon"])
async def test_a_killed_shim_leaves_nothing(launcher: LocalLauncher, tmp_path: Path, text: str) -> None:
    exits = Exits(launcher)
    await launcher.start(launch("one", script(tmp_path, text, str(tmp_path / "daemon")), unix=True))
    await until(lambda: "up" in launcher.tail("one"))
    pids = launcher.pids("one")
    os.kill(pids[-1], signal.SIGKILL)
    await until(lambda: exits.seen)
    await launcher.stop("one", grace=10)
    assert [pid for pid in pids if alive(pid)] == []
    assert with_mark_of(tmp_path) == []
    assert exits.seen == [("one", Exit(code=None, signal=9))]


async def test_a_killed_shim_leaves_no_process_that_was_seen(launcher: LocalLauncher, tmp_path: Path) -> None:
    await launcher.start(launch("one", script(tmp_path, UNMARKED_DAEMON, str(tmp_path / "daemon"))))
    daemon = await daemon_pid(tmp_path / "daemon")
    await until(lambda: b"sleep" in Path(f"/proc/{daemon}/cmdline").read_bytes())
    pids = launcher.pids("one")
    assert daemon in pids
    os.kill(pids[-1], signal.SIGKILL)
    await until(lambda: not alive(daemon))
    await launcher.stop("one", grace=0)


async def test_a_frozen_shim_does_not_hang_the_stop(
    launcher: LocalLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelyard.launchers.child.STOP_MARGIN", 0.2)
    await launcher.start(launch("one", script(tmp_path, PATIENT)))
    os.kill(launcher.pids("one")[-1], signal.SIGSTOP)
    await launcher.stop("one", grace=0.1)
    assert launcher.pids("one") == []


async def test_an_engine_has_a_session_of_its_own(launcher: LocalLauncher, tmp_path: Path) -> None:
    await launcher.start(launch("one", script(tmp_path, PATIENT)))
    sessions = {os.getsid(pid) for pid in launcher.pids("one")}
    assert os.getsid(0) not in sessions
    engine = launcher.pids("one")[0]
    assert os.getpgid(engine) == engine


# -- a parent that dies -----------------------------------------------------------------------------------

PARENT = """
import asyncio, os, sys
from pathlib import Path
from modelyard.engines.base import Command
from modelyard.launchers.base import Launch
from modelyard.launchers.local import LocalLauncher

async def main():
    launcher = LocalLauncher(Path(sys.argv[1]))
    await launcher.open()
    for name in ("one", "two/three"):
        argv = tuple(sys.argv[2:4]) + (sys.argv[4] + name[0],)
        await launcher.start(Launch(instance=name, command=lambda a: Command(argv=argv), unix=True))
        while "up" not in launcher.tail(name):
            await asyncio.sleep(0.01)
    print(*(pid for name in ("one", "two/three") for pid in launcher.pids(name)), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


async def parent_with_engines(tmp_path: Path) -> tuple[asyncio.subprocess.Process, list[int]]:
    """A process that runs two engines with a daemon each; and the pids of all below it."""
    engine = tmp_path / "engine.py"
    engine.write_text(DAEMON)
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PARENT, str(tmp_path / "data"), sys.executable, str(engine)),
        str(tmp_path / "daemon"),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    async with asyncio.timeout(20):
        line = await parent.stdout.readline()
    pids = [int(pid) for pid in line.split()]
    assert len(pids) == 6
    return parent, pids


def shims(pids: list[int]) -> list[int]:
    return [pid for pid in pids if b"shim.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def test_a_killed_parent_leaves_nothing(tmp_path: Path) -> None:
    parent, pids = await parent_with_engines(tmp_path)
    parent.kill()
    await parent.wait()
    await until(lambda: not any(alive(pid) for pid in pids))


async def test_ctrl_c_does_not_reach_engines(tmp_path: Path) -> None:
    parent, pids = await parent_with_engines(tmp_path)
    os.kill(parent.pid, signal.SIGSTOP)  # so that only the signal itself could end an engine
    os.killpg(parent.pid, signal.SIGINT)
    assert all(alive(pid) for pid in pids)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await until(lambda: not any(alive(pid) for pid in pids))


async def test_killed_parent_and_shims_are_cleaned_up_by_the_next_life(tmp_path: Path) -> None:
    parent, pids = await parent_with_engines(tmp_path)
    os.kill(parent.pid, signal.SIGSTOP)  # it must not notice its shims' end
    for shim in shims(pids):
        os.kill(shim, signal.SIGKILL)
    parent.kill()
    await parent.wait()
    assert any(alive(pid) for pid in pids), "the daemons outlive their shims: nothing to reap otherwise"

    launcher = LocalLauncher(tmp_path / "data")
    assert await launcher.open() == ["one", "two/three"]
    assert not any(alive(pid) for pid in pids)
    assert list((tmp_path / "data" / "run").iterdir()) == []
    assert await launcher.start(launch("one", script(tmp_path, PATIENT)))
    await launcher.close()


async def test_a_reused_pid_is_never_killed(tmp_path: Path) -> None:
    bystander = await asyncio.create_subprocess_exec("/bin/sleep", "600")
    data = tmp_path / "data"
    data.mkdir()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record = Record(instance="one", pid=bystander.pid, start=1, boot=boot, mark="abc/1/one")
    content = {"version": 1, "instances": [asdict(record)]}
    (data / "instances.json").write_text(json.dumps(content))
    launcher = LocalLauncher(data)
    assert await launcher.open() == []
    assert alive(bystander.pid)
    await launcher.close()
    bystander.kill()
    await bystander.wait()


# -- the folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tried", [False, True])
async def test_who_does_not_own_the_folder_leaves_it_alone(
    launcher: LocalLauncher, tmp_path: Path, tried: bool
) -> None:
    other = LocalLauncher(tmp_path / "data")
    if tried:
        with pytest.raises(ConfigError, match="in use"):
            await other.open()
    await other.close()
    assert (tmp_path / "data" / "run").is_dir()


async def test_a_folder_has_one_owner(launcher: LocalLauncher, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"server\.data_dir: .* in use by another Modelyard \(pid {os.getpid()}\)"
    ):
        await LocalLauncher(tmp_path / "data").open()


async def test_a_folder_is_free_again_after_close(tmp_path: Path) -> None:
    for _ in range(2):
        launcher = LocalLauncher(tmp_path / "data")
        await launcher.open()
        await launcher.close()


async def test_a_folder_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"server\.data_dir: .*file/data cannot be written"):
        await LocalLauncher(tmp_path / "file" / "data").open()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 9}', '{"version": 1, "instances": [{}]}'])
async def test_a_broken_state_file_is_set_aside(tmp_path: Path, content: str) -> None:
    (tmp_path / "instances.json").write_text(content)
    launcher = LocalLauncher(tmp_path)
    assert await launcher.open() == []
    await launcher.close()
    assert (tmp_path / "instances.broken").read_text() == content


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Unlink it, and the disk takes the state file again."""
    (tmp_path / "data").mkdir(exist_ok=True)
    path = tmp_path / "data" / "instances.new"
    path.symlink_to("/dev/full")
    return path


async def test_a_full_disk_stops_a_start_of_the_server_and_is_named(tmp_path: Path, full: Path) -> None:
    launcher = LocalLauncher(tmp_path / "data")
    with pytest.raises(ConfigError) as refused:
        await launcher.open()
    assert f"server.data_dir: {tmp_path}/data cannot be written: No space left" in str(refused.value)
    full.unlink()
    await launcher.open()
    await launcher.close()


async def test_instances_come_and_go_while_the_disk_is_full(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "RETRY", 0.05)
    launcher = LocalLauncher(tmp_path / "data")
    await launcher.open()
    full: Path = request.getfixturevalue("full")
    exits = Exits(launcher)
    with capture_logs() as said:
        for name in ("one", "two"):
            await launcher.start(launch(name, script(tmp_path, PATIENT)))
            assert launcher.problem == "No space left on device"
        await launcher.stop("one", grace=0)
        assert [name for name, _ in exits.seen] == ["one"]
        full.unlink()
        await until(lambda: not launcher.problem)  # though nothing changes
    assert [line["event"] for line in said] == ["state.not_written", "state.written_again"]
    records = json.loads((tmp_path / "data" / "instances.json").read_text())["instances"]
    assert [record["instance"] for record in records] == ["two"]
    await launcher.close()
    assert with_mark_of(tmp_path) == []


async def test_closing_while_the_disk_is_full_leaves_nothing(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    launcher = LocalLauncher(tmp_path / "data")
    await launcher.open()
    request.getfixturevalue("full")
    await launcher.start(launch("one", script(tmp_path, PATIENT)))
    await launcher.close()
    assert with_mark_of(tmp_path) == []
    assert launcher._state._again is None


async def test_output_that_has_no_file_is_lost_and_nothing_else(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    (tmp_path / "data" / "logs" / "one.log").mkdir()  # as on a disk that takes no more files
    exits = Exits(launcher)
    await launcher.start(launch("one", script(tmp_path, "print('x' * 9_000_000)")))
    await until(lambda: exits.seen)
    assert exits.seen == [("one", Exit(code=0))]
    assert launcher.tail("one") == ""
    await launcher.stop("one", grace=0)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


# -- starting ---------------------------------------------------------------------------------------------


async def start_command(launcher: LocalLauncher, command: Command) -> None:
    await launcher.start(Launch(instance="one", command=lambda address: command, unix=True))


async def test_a_failed_start_says_what_and_why(launcher: LocalLauncher, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    before = open_fds()
    for command, message in (
        (Command(argv=(str(plain),)), f"{plain} cannot be executed: Permission denied"),
        (Command(argv=(str(tmp_path / "none"),)), f"{tmp_path}/none cannot be executed: No such file"),
        (Command(argv=("/bin/true",), cwd=str(plain)), f"/bin/true cannot be started in {plain}: Not a dir"),
        (Command(argv=("/bin/true", "a\0b")), "/bin/true cannot be started: embedded null byte"),
        (Command(argv=("/bin/true",), environment={"A=B": "c"}), "/bin/true cannot be started: illegal env"),
        (Command(argv=()), "one has no command line"),
    ):
        with pytest.raises(LaunchFailed) as caught:
            await start_command(launcher, command)
        assert message in str(caught.value)
        assert launcher.pids("one") == []
    assert open_fds() == before


async def test_the_environment_is_scrubbed(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "LC_ALL": "C.UTF-8",
        "HF_TOKEN": "s1",
        "OPENAI_API_KEY": "s2",
        "NVIDIA_API_KEY": "s3",
        "CUDA_SECRET": "s4",
        "MYSTERY": "s5",
        "HTTPS_PROXY": "http://user:s6@proxy",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "HIP_VISIBLE_DEVICES": "1",
    }
    launcher = LocalLauncher(tmp_path / "data", environ=environ)
    await launcher.open()
    text = "import os\nfor item in sorted(os.environ.items()): print(*item)"
    exits = Exits(launcher)
    await launcher.start(launch("one", script(tmp_path, text), CUDA_VISIBLE_DEVICES="GPU-1", GIVEN="x"))
    await until(lambda: exits.seen)
    await launcher.stop("one", grace=0)
    names = dict(line.split(" ", 1) for line in launcher.tail("one").split("\n"))
    assert names.pop("MODELYARD_INSTANCE").endswith("/one")
    assert names == {
        "PATH": environ["PATH"],
        "LC_ALL": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "GIVEN": "x",
    }
    await launcher.close()


async def test_an_engine_gets_no_descriptor_but_its_output(launcher: LocalLauncher, tmp_path: Path) -> None:
    exits = Exits(launcher)
    text = "import os\nprint(*sorted(int(fd) for fd in os.listdir('/proc/self/fd')))"
    await launcher.start(launch("one", script(tmp_path, text)))
    await until(lambda: exits.seen)
    await launcher.stop("one", grace=0)
    assert launcher.tail("one") == "0 1 2 3", "3 is the listing itself"


async def test_signals_that_python_ignores_are_restored(launcher: LocalLauncher, tmp_path: Path) -> None:
    await launcher.start(launch("one", ("/bin/sleep", "600")))
    status = Path(f"/proc/{launcher.pids('one')[0]}/status").read_text()
    ignored = int(next(line for line in status.split("\n") if line.startswith("SigIgn")).split()[1], 16)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        assert not ignored & (1 << (number - 1)), number.name


# -- addresses --------------------------------------------------------------------------------------------

LISTENER = """
import socket, sys, time
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
print('up', flush=True)
time.sleep(600)
"""


def listening(tmp_path: Path) -> Launch:
    """An engine that binds the Unix socket it is given; fails when a file is there."""

    def command(address: Address) -> Command:
        return Command(argv=script(tmp_path, LISTENER, address.path))

    return Launch(instance="model@0123456789ab/1", command=command, unix=True)


async def test_a_socket_lies_in_a_private_folder_and_goes_with_its_engine(
    launcher: LocalLauncher, tmp_path: Path
) -> None:
    for _ in range(2):
        address = await launcher.start(listening(tmp_path))
        path = Path(address.path)
        await until(lambda: "up" in launcher.tail("model@0123456789ab/1"))
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        await launcher.stop("model@0123456789ab/1", grace=0)
        assert not path.exists()


async def test_a_stale_socket_does_not_stop_a_start(launcher: LocalLauncher, tmp_path: Path) -> None:
    address = await launcher.start(listening(tmp_path))
    path = Path(address.path)
    await launcher.stop("model@0123456789ab/1", grace=0)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    await launcher.start(listening(tmp_path))
    await until(lambda: "up" in launcher.tail("model@0123456789ab/1"))


@pytest.mark.parametrize("runtime_dir", ["short", "long", "none"])
async def test_a_long_data_folder_still_gets_short_sockets(tmp_path: Path, runtime_dir: str) -> None:
    data = tmp_path / ("d" * 90) / "data"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        long = tmp_path / ("x" * 90)
        long.mkdir()
        places = {"short": {"XDG_RUNTIME_DIR": short}, "long": {"XDG_RUNTIME_DIR": str(long)}, "none": {}}
        launcher = LocalLauncher(data, environ={"PATH": os.environ["PATH"], **places[runtime_dir]})
        await launcher.open()
        address = await launcher.start(listening(tmp_path))
        await until(lambda: "up" in launcher.tail("model@0123456789ab/1"))
        path = Path(address.path)
        assert len(str(path)) < 108
        assert path.is_relative_to(short) == (runtime_dir == "short")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        await launcher.close()
        assert not path.parent.exists()


async def test_a_socket_folder_of_someone_else_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data" / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        ConfigError, match=r"server\.data_dir: .*/run is not a folder of this user; remove it"
    ):
        await LocalLauncher(tmp_path / "data").open()


# -- nothing piles up ---------------------------------------------------------------------------------------


async def cycle(folder: Path, rounds: int) -> None:
    launcher = LocalLauncher(folder / "data")
    exits = Exits(launcher)
    await launcher.open()
    argv = script(folder, PATIENT)
    await launcher.start(launch("first", argv))
    await launcher.stop("first", grace=0)
    before = open_fds()
    for n in range(rounds):
        await launcher.start(launch(f"i{n}", argv, unix=n % 2 == 0))
        await launcher.stop(f"i{n}", grace=5 if n % 3 else 0)
    assert open_fds() == before
    assert zombies() == []
    assert list((folder / "data" / "run").iterdir()) == []
    assert len(exits.seen) == rounds + 1
    assert len(list((folder / "data" / "logs").iterdir())) <= 65
    await launcher.close()


async def test_a_hundred_starts_and_stops_leave_nothing(tmp_path: Path) -> None:
    await cycle(tmp_path, 100)
    assert with_mark_of(tmp_path) == []


def test_the_same_on_uvloop(tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        loop.run(cycle(tmp_path, 20))
    assert with_mark_of(tmp_path) == []


async def test_a_folder_of_its_own_goes_with_the_engine(launcher: LocalLauncher, tmp_path: Path) -> None:
    """Also one that a former life left, and that of an engine which cannot be started."""
    argv = script(tmp_path, "import os, time; print(os.getcwd(), os.listdir(), flush=True); time.sleep(600)")

    async def begin(argv: tuple[str, ...]) -> Path:
        command = Command(argv, own_folder=True)
        await launcher.start(Launch(instance="one", command=lambda address: command, unix=False))
        await until(lambda: launcher.tail("one"))
        folder, _, listed = launcher.tail("one").partition(" ")
        assert listed == "[]"
        return Path(folder)

    folder = await begin(argv)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "file").touch()
    await launcher.stop("one", grace=0)
    assert not folder.exists()
    with pytest.raises(LaunchFailed):
        await begin(("/no/such/program",))
    assert not folder.exists()
    folder.mkdir()
    (folder / "file").touch()
    await launcher.close()
    await launcher.open()
    assert await begin(argv) == folder
