"""Engines that train many runs: processes of this machine, or tasks of a Ray cluster."""
