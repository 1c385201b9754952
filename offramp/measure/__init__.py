"""Measurements: accuracy of every exit, costs, traces, times."""
