"""Model repository to HTTP: the gateway. Imports no training library."""

__version__ = "0.1.0"
