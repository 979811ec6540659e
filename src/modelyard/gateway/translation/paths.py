"""The paths of LibreTranslate's API, and `/translation`, which is ours: for whoever asks which API a path
belongs to, or whether a key may come in its body."""

from __future__ import annotations

from modelyard.engines.base import TRANSLATE

TRANSLATION = "/translation"
DETECT = "/detect"
TRANSLATE_FILE = "/translate_file"
LANGUAGES = "/languages"
SETTINGS = "/frontend/settings"
DOWNLOAD = "/download_file/"
"""What follows is the document's own name."""

KEY_IN_BODY = frozenset({TRANSLATE, TRANSLATION, TRANSLATE_FILE, DETECT, LANGUAGES})
"""Paths whose handlers look for a key in the body where no header has one: see `auth.Gate.admit_with`."""


def is_libretranslate(path: str) -> bool:
    """Whether its errors have the shape of this API."""
    return path in KEY_IN_BODY or path == SETTINGS or path.startswith(DOWNLOAD)


__all__ = [
    "DETECT",
    "DOWNLOAD",
    "KEY_IN_BODY",
    "LANGUAGES",
    "SETTINGS",
    "TRANSLATE",
    "TRANSLATE_FILE",
    "TRANSLATION",
    "is_libretranslate",
]
