"""Training: one step, epochs on Fabric, optimizers, checkpoints, logs."""
