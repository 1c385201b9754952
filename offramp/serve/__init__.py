"""Serving a bundle: early exits under load. Runs without torch."""
