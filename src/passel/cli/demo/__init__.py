"""The demonstration: an embedded registry, a made image, a crowd of nodes."""
