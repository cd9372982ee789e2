"""Preprocessing, augmentation and postprocessing; each formula once, as a function of tensors."""
