"""From names to a result: one run of training or evaluation."""
