"""The science of the search as plain functions: making, comparing, ranking, choosing crystals."""

__version__ = "0.1.0"
