"""Clean accuracy, adversarial accuracy and expected robustness as an `evaluate` module."""
