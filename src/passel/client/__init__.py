"""The Python API over a gateway."""
