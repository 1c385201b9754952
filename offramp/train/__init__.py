"""Training: one step, epochs on Fabric, optimisers, checkpoints, logs."""
