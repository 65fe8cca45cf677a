"""Predicts accuracies after fine-tuning from measures and earlier results."""
