"""Backbones: one file per family, naming the networks it builds."""
