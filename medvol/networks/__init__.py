"""One function per architecture; MONAI's implementation where it has one.

Every function takes the number of input channels, the number of outputs and the spatial size that the data will have,
and refuses at once, with the smallest legal size, a size that the architecture cannot take.
"""
