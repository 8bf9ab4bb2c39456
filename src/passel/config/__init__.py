"""The one YAML file as frozen models, and how it is read."""

from passel.config.load import build, dump, load, load_as, missing_files, parse, parse_as
from passel.config.sections import (
    ApiConfig,
    Config,
    GatewayConfig,
    LimitsConfig,
    LoggingConfig,
    PeerConfig,
    SchedulerConfig,
    SeedsConfig,
    StoreConfig,
    TraceConfig,
    UpstreamConfig,
    WebhooksConfig,
)
from passel.config.units import (
    duration_text,
    host_port,
    parse_duration,
    parse_size,
    size_text,
)

__all__ = [
    "ApiConfig",
    "Config",
    "GatewayConfig",
    "LimitsConfig",
    "LoggingConfig",
    "PeerConfig",
    "SchedulerConfig",
    "SeedsConfig",
    "StoreConfig",
    "TraceConfig",
    "UpstreamConfig",
    "WebhooksConfig",
    "build",
    "dump",
    "duration_text",
    "host_port",
    "load",
    "load_as",
    "missing_files",
    "parse",
    "parse_as",
    "parse_duration",
    "parse_size",
    "size_text",
]
