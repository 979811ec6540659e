"""Modelyard: one address in front of many language and translation models, on few GPUs.

`Modelyard` runs a server inside this process; `Client` talks to one that runs elsewhere. `Translator` is a
translation model without a server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelyard.client import Client
    from modelyard.embed import Modelyard
    from modelyard.translator import Translator

__version__ = "0.1.0"
__all__ = ["Client", "Modelyard", "Translator", "__version__"]

# Loaded when asked for: the shim and the engine servers import this package and have to start quickly.
_LAZY = {
    "Client": "modelyard.client",
    "Modelyard": "modelyard.embed",
    "Translator": "modelyard.translator",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
