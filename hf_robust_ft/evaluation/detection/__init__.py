"""Evaluation of detection models under attack; experimental."""
