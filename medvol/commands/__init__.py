"""The commands of `medvol`, a module each: `add` its arguments, `run` one library call. The only place that prints."""
