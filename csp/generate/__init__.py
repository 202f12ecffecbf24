"""Making trial crystals."""

from csp.generate.make import Generated, generate

__all__ = ["Generated", "generate"]
