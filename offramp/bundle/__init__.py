"""Bundles: a folder with segments, policy and manifest that answers without torch."""
