"""One thin Jobflow Maker per stage, and the documents that stages exchange."""

__version__ = "0.1.0"
