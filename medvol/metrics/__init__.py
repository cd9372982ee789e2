"""Numbers about predictions: classification, calibration, and the statistics that make them honest.

NumPy at import; SciPy only inside the functions that need it; never torch.
"""
