"""The `keys:` section → keys, of which the secrets are left out. Used by `build`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import sha256

from modelyard.config.problems import Refuse
from modelyard.config.schema import KeySection
from modelyard.config.values import Key, Scope
from modelyard.core.types import Priority


def keys_of(sections: Sequence[KeySection], refuse: Refuse) -> tuple[Key, ...]:
    """The keys, in order."""
    keys = [_key(f"keys[{index}]", section, refuse) for index, section in enumerate(sections)]
    for index, key in enumerate(keys):
        for earlier in keys[:index]:
            if key.name == earlier.name:
                refuse(f"keys[{index}].name", f"'{key.name}' is taken by an earlier key")
            if key.digest and key.digest == earlier.digest:
                refuse(f"keys[{index}]", f"is the same secret as the key '{earlier.name}'")
    return tuple(keys)


def _key(path: str, section: KeySection, refuse: Refuse) -> Key:
    digest = ""
    if (section.key is None) == (section.hash is None):
        refuse(path, "needs either `key` or `hash`")
    elif section.key is not None:
        secret = section.key.get_secret_value()
        if re.fullmatch(r"[\x21-\x7e]{1,512}", secret):
            digest = sha256(secret.encode()).hexdigest()
        else:
            refuse(f"{path}.key", "must be 1 to 512 visible ASCII characters without spaces")
    elif section.hash is not None:
        digest = section.hash.get_secret_value().removeprefix("sha256:").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            refuse(f"{path}.hash", "must be a sha256 in hex (64 digits)")
            digest = ""
    scopes = frozenset(Scope(scope) for scope in section.scopes)
    return Key(section.name, digest, scopes, Priority[section.max_priority.upper()])
