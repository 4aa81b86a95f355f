"""Mnemosine: a self-hosted backend that serves AI agents over HTTP."""

__version__ = "0.1.0"
