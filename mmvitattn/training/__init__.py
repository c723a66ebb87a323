"""Training: checks beforehand, exact resume, learning rates by layer, sharding, logs."""
