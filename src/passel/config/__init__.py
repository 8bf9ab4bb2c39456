"""The one YAML file as frozen models, and how it is read."""
