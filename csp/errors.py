"""The errors that the science of the search raises; one structure that fails is data, never one of these."""


class CspError(Exception):
    """Base of every error of this package."""


class ConfigError(CspError, ValueError):
    """The user's settings cannot be met; nothing was computed yet."""


class DataError(CspError, ValueError):
    """A structure, a label or a file is unusable; the message names it."""
