"""Synthetic volumes with known answers, for tests, notebooks, and as the data a bundle trains on when it is given none.

Every length is in millimetres, world space is RAS+, and whatever is random takes a `numpy.random.Generator`.
"""
