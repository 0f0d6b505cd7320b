"""YAML recipes, one run a file, and how they become arguments."""

from hf_robust_ft.recipes.parsing import build_parser, parse_recipe, read_recipe

__all__ = ["build_parser", "parse_recipe", "read_recipe"]
