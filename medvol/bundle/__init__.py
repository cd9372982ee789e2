"""What every bundle's configuration calls: the start and end of a run, and the study it works on."""
