"""What losses are made of: pure functions on tensors."""
