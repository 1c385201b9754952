"""Data sources: one file each; resident and streaming access; augmentation of whole batches."""
