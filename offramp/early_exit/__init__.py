"""Early exit: policies, their calibration, and the runtime."""
