"""The version of the package, alone in its file: the build reads it from here."""

__version__ = "0.1.0"
