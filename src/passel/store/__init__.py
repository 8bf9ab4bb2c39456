"""Blobs and pieces on a node's disk."""
