"""The vocabulary of the OCI distribution specification: names, ranges, media types, errors."""
