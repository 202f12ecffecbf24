"""The self-extending search: configuration, launching, querying, reporting, command line."""

__version__ = "0.1.0"
