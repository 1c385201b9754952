"""Bundles: a folder with segments, policy and manifest that predicts without torch."""
