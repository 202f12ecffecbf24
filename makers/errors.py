"""What can go wrong between the stages, named after what the user should do next."""

from __future__ import annotations

import acnn.errors
import csp.errors


class HullseekerError(Exception):
    """Base of the errors raised by makers and workflows."""


class ConfigError(HullseekerError, ValueError):
    """The user's settings are wrong and nothing was computed yet: fix the search file."""


class LabelError(HullseekerError, RuntimeError):
    """The first-principles stage failed as a whole: look at the folder that the message names."""


class StopError(HullseekerError, RuntimeError):
    """The search cannot continue: decide what to do."""


USER_ERRORS = (
    ConfigError,
    acnn.errors.ConfigError,
    acnn.errors.DataError,
    csp.errors.ConfigError,
    csp.errors.DataError,
)
"""Errors that the user mends in a file; the command line ends with exit code 2."""
