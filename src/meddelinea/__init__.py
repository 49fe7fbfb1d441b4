"""MedDelinea: medical image segmentation with controllable diffusion transformers."""

__version__ = "0.1.0"
