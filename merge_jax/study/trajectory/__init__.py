"""Merges along a training run, against decays of its learning rate."""
