"""Adversarial fine-tuning with transformers' Trainer."""
