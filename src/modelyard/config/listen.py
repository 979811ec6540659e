"""The `server:` section: where to listen, whether that is safe, and where data lies.

Used by `build`; by compose and the command line for the address alone.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path

from modelyard.config.problems import Refuse
from modelyard.config.schema import ServerSection
from modelyard.config.values import Config, Limits, ServerSetting
from modelyard.core.types import Address

# The kernel's sun_path holds 108 bytes with the closing zero.
LONGEST_SOCKET_PATH = 107


def server_setting(
    section: ServerSection,
    environ: Mapping[str, str],
    absolute: Callable[[str, str], str],
    refuse: Refuse,
) -> ServerSetting:
    """The server's setting. `absolute(name, path)` resolves file names."""
    given = {
        name: value
        for name in ServerSection.model_fields
        if name not in {"limits", "unix", "data_dir"} and (value := getattr(section, name)) is not None
    }
    for name in ("allowed_hosts", "allowed_origins"):
        given[name] = tuple(given.get(name, ()))
    limits = section.limits
    setting = ServerSetting(
        data_dir=_data_dir(section, environ, absolute),
        unix=Path(absolute(section.unix, "server.unix")) if section.unix else None,
        limits=Limits(**limits.model_dump(exclude_none=True)),
        **given,
    )
    _check_address(section, setting, refuse)
    return setting


def is_open(setting: ServerSetting) -> bool:
    """Whether it serves everybody as long as there is no key."""
    return setting.allow_unauthenticated or setting.unix is not None or is_loopback(setting.host)


def check_protected(config: Config) -> None:
    """Raises ConfigErrors for a server beyond loopback without a key."""
    if not config.keys and not is_open(config.server):
        message = (
            "is beyond loopback and there are no `keys:`, so anyone could use and control this server; "
            "add keys (there, or by `modelyard key add` while it listens on loopback), or say "
            "`allow_unauthenticated: true`"
        )
        raise config.failure([("server.host", message)])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address. Names other than localhost are not trusted to."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _check_address(section: ServerSection, setting: ServerSetting, refuse: Refuse) -> None:
    if setting.unix is None:
        return
    if section.host is not None or section.port is not None:
        refuse("server.unix", "stands instead of `host` and `port`; leave those out")
    if len(str(setting.unix).encode()) > LONGEST_SOCKET_PATH:
        refuse("server.unix", f"is longer than the {LONGEST_SOCKET_PATH} bytes that a socket's path can have")


def _data_dir(
    section: ServerSection, environ: Mapping[str, str], absolute: Callable[[str, str], str]
) -> Path:
    if section.data_dir:
        return Path(absolute(section.data_dir, "server.data_dir"))
    data_home = environ.get("XDG_DATA_HOME", "")
    if not data_home.startswith("/"):  # the XDG rules: a relative one is ignored
        data_home = absolute("~/.local/share", "")
    return Path(data_home) / "modelyard"


def cannot_listen(setting: ServerSetting, error: OSError) -> tuple[str, str]:
    """Path and message of why the address cannot be listened on."""
    if setting.unix:
        reason = {
            errno.EADDRINUSE: "is there and is no socket: remove it, or name another path",
            errno.ENOENT: f"cannot be made: make the folder {setting.unix.parent}, or name another path",
        }.get(error.errno or 0, f"cannot be made ({error.strerror or error}): name another path")
        return "server.unix", f"{setting.unix} {reason}"
    if isinstance(error, socket.gaierror):
        return "", f"the host {setting.host} is not known: choose another with --host"
    reason = {
        errno.EADDRINUSE: "is in use: choose another with --port (0 takes a free one)",
        errno.EADDRNOTAVAIL: "is no address of this machine: choose another with --host",
        errno.EACCES: "may not be used by this user: choose another with --port",
    }.get(
        error.errno or 0,
        f"cannot be listened on ({error.strerror or error}): choose another with --host or --port",
    )
    return "", f"{Address(host=setting.host, port=setting.port)} {reason}"
