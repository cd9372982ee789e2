"""What a run leaves in its output folder: metrics, predictions, pictures and the record of the run."""
