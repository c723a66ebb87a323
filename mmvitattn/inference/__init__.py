"""Inference: models of configs, predictors for the three tasks, images and videos, ONNX export."""
