"""The `evaluate` modules of this package; each folder also loads with `evaluate.load(<folder>)`."""
