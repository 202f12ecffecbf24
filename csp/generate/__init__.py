"""Making trial crystals."""

from csp.generate.make import Generated, generate
from csp.generate.parallel import generate_chunks

__all__ = ["Generated", "generate", "generate_chunks"]
