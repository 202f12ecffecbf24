"""Fitting a potential to energies, forces and stresses."""

from acnn.train.loop import TrainResult, train
from acnn.train.metrics import history_csv

__all__ = ["TrainResult", "history_csv", "train"]
