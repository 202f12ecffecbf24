"""Errors that a caller of :mod:`acnn` can act on, sorted by who must act."""


class AcnnError(Exception):
    """Base of every error that :mod:`acnn` raises on purpose."""


class ConfigError(AcnnError, ValueError):
    """A setting is wrong; nothing has been computed yet."""


class DataError(AcnnError, ValueError):
    """A structure, label or file is wrong; the message names it."""


class ModelError(AcnnError, RuntimeError):
    """A model does not fit: too new, wrong elements, damaged file."""


class StateError(ModelError):
    """What a killed training left is damaged or belongs to another training; the message names the file."""


class NumericalError(AcnnError, ArithmeticError):
    """A whole calculation went to not-a-number or exploded."""
