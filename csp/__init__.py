"""The science of the search as plain functions: making, comparing, ranking, choosing crystals."""

import os

__version__ = "0.1.0"

os.environ.setdefault("SPGLIB_WARNING", "OFF")  # it would print two lines for each crystal without symmetry
