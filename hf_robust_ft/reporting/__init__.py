"""Pictures and model cards from reports and log histories."""

from hf_robust_ft.reporting.artifacts import write_evidence
from hf_robust_ft.reporting.examples import choose_examples, save_examples
from hf_robust_ft.reporting.model_card import render_model_card
from hf_robust_ft.reporting.plots import plot_curves, plot_training

__all__ = ["choose_examples", "plot_curves", "plot_training", "render_model_card", "save_examples", "write_evidence"]
