"""Leaving early: policies, their calibration, and the runtime."""
