"""Model files: where they come from, and the content-addressed cache that keeps them.

Called by compose and the command line. It knows sources and bytes, not models or engines.
"""

from modelyard.store.cache import Store
from modelyard.store.derived import Derived
from modelyard.store.formats import Terms
from modelyard.store.https import WebFiles
from modelyard.store.hub import HubFiles
from modelyard.store.local import LocalFiles
from modelyard.store.objects import ObjectFiles
from modelyard.store.ollama import OllamaModels
from modelyard.store.pypi import PythonPackages
from modelyard.store.source import Progress, Source, StoredFile, Watch
from modelyard.store.sources import sources_of

__all__ = [
    "Derived",
    "HubFiles",
    "LocalFiles",
    "ObjectFiles",
    "OllamaModels",
    "Progress",
    "PythonPackages",
    "Source",
    "Store",
    "StoredFile",
    "Terms",
    "Watch",
    "WebFiles",
    "sources_of",
]
