"""The only place that builds real objects from a configuration, and the life of a whole yard.

Called by the command line and by `embed`. It wires; it decides nothing and serves nothing itself.
"""

from modelyard.compose.reading import Origin
from modelyard.compose.yard import Yard, build

__all__ = ["Origin", "Yard", "build"]
