"""What a replay lets one choose, by name. Light: a command line offers these without loading the rest."""

from enum import StrEnum


class Format(StrEnum):
    """What a trace is."""

    CSV = "csv"
    JOURNAL = "journal"
    ACCESS = "access"
    JSON = "json"


class StrategyName(StrEnum):
    FIRST_COME = "first come"
    LRU = "LRU"
    READY_FIRST = "ready ones pass, no bound"
    OLDEST_IDLE = "oldest idle first"
    LRU_WITH_PATIENCE = "LRU with patience"
    OURS = "ours"


class Theme(StrEnum):
    """Colours of a picture; AUTO: as the reader's system has it."""

    AUTO = "auto"
    LIGHT = "light"
    DARK = "dark"
