"""Losses, handlers and loaders that turn MONAI's `SupervisedTrainer` into medvol's training."""
