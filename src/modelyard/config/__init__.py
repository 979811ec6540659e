"""Configuration: YAML and environment in, frozen values out.

Called by compose and the command line. `load` either returns a whole `Config` or raises `ConfigErrors` that
lists every problem with its path, file and line; nothing is ever half applied. It never looks at devices,
model files or the network, and never keeps, prints or logs a key in plain text.

Security: what runs programs (a profile's `program` and `environment`, the parameters `extra_args` and
`command`) is read here, from files on disk. A value of this kind that arrives over the API must not be turned
into these types, unless such a file says `allow_programs: true`.
"""

from modelyard.config.build import load
from modelyard.config.problems import ConfigErrors, Problem
from modelyard.config.quantities import parse_duration
from modelyard.config.schema import json_schema
from modelyard.config.values import (
    Config,
    DeviceSetting,
    Key,
    Limits,
    Model,
    S3Setting,
    Scope,
    ServerSetting,
    StoreSetting,
    Translation,
)
from modelyard.core.units import parse_size

__all__ = [
    "Config",
    "ConfigErrors",
    "DeviceSetting",
    "Key",
    "Limits",
    "Model",
    "Problem",
    "S3Setting",
    "Scope",
    "ServerSetting",
    "StoreSetting",
    "Translation",
    "json_schema",
    "load",
    "parse_duration",
    "parse_size",
]
