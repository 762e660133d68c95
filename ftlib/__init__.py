"""Fine-tuning of pretrained language models in JAX: one config, one train step, honest numbers."""

__version__ = '0.1.0'
