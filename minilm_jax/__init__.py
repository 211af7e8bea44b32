"""A laboratory for language models of 1-20 million parameters, in JAX and Flax."""

__version__ = '0.1.0'
