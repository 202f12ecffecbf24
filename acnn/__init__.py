"""ACNN: the attention-coupled neural network, its training, its batched relaxation."""

__version__ = "0.1.0"
