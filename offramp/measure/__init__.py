"""Measuring: accuracy of every exit, costs, traces."""
