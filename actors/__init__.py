"""Thin Ray shells around the machines of ``passel.core``."""
