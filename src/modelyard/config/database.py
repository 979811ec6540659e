"""The `registry:` section: where the registry's database lies.

Used by `build`, and by whoever shows such a URL.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from modelyard.config.problems import Refuse
from modelyard.config.schema import RegistrySection
from modelyard.config.secrets import HIDDEN

PATH = "registry.database_url"
_SQLITE, _POSTGRESQL = "sqlite:///", ("postgresql://", "postgres://")


def database_url(section: RegistrySection, absolute: Callable[[str, str], str], refuse: Refuse) -> str:
    """The URL, with an absolute path of SQLite's file; "" where none is said. What is wrong with it is told
    to `refuse(path, message)`, without the URL: it may hold a password."""
    url = section.database_url.get_secret_value() if section.database_url else ""
    if url.startswith(_SQLITE) and len(url) > len(_SQLITE):
        return _SQLITE + absolute(url.removeprefix(_SQLITE), PATH)
    if url and not (url.startswith(_POSTGRESQL) and len(url) > len("postgresql://")):
        refuse(PATH, "is neither sqlite:////PATH nor postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    return url


def without_password(url: str) -> str:
    """The URL as people may see it: no password, no parameters."""
    return re.sub(r"(?<=://)([^:@/]*):.*@", rf"\1:{HIDDEN}@", url).partition("?")[0]
