"""The one YAML file as frozen models, and how it is read."""

from passel.config.load import dump, load, missing_files, parse
from passel.config.sections import (
    Config,
    GatewayConfig,
    LimitsConfig,
    LoggingConfig,
    PeerConfig,
    SchedulerConfig,
    SeedsConfig,
    StoreConfig,
    UpstreamConfig,
)
from passel.config.units import (
    duration_text,
    host_port,
    parse_duration,
    parse_size,
    size_text,
)

__all__ = [
    "Config",
    "GatewayConfig",
    "LimitsConfig",
    "LoggingConfig",
    "PeerConfig",
    "SchedulerConfig",
    "SeedsConfig",
    "StoreConfig",
    "UpstreamConfig",
    "dump",
    "duration_text",
    "host_port",
    "load",
    "missing_files",
    "parse",
    "parse_duration",
    "parse_size",
    "size_text",
]
