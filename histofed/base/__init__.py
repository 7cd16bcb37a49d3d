"""The bottom layer: names, errors, time, durable files, configuration. Standard library and pydantic only."""
