"""Training: checks beforehand, exact resume, weight decay, layer-wise rates, sharding, logs."""
