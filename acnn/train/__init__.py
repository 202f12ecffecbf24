"""Fitting a potential to energies, forces and stresses."""

from acnn.train.loop import TrainResult, train

__all__ = ["TrainResult", "train"]
