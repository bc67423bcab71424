"""The version, which packages and results name."""

__version__ = "0.1.0"
