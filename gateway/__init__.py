"""The registry mirror of a node: an aiohttp process of its own, without Ray."""
