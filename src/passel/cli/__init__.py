"""The ``passel`` command."""
