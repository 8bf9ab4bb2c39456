"""Bytes between peers, and from the origin."""
