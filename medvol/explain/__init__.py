"""What in an image, or which column of a table, a trained classifier's answer rests on.

Pictures of this kind show where a network looks, not whether it is right to look there, and no map proves that a
finding is one. A map that stays the same when the weights are random shows the image, not the network (Adebayo et al.,
"Sanity checks for saliency maps", NeurIPS 2018); tests/explain makes that check.
"""
