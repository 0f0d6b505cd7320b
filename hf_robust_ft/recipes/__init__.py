"""YAML recipes, which compose, and how they become arguments."""

from hf_robust_ft.recipes.parsing import build_parser, compose_recipes, parse_recipe, read_recipe, shipped_recipes

__all__ = ["build_parser", "compose_recipes", "parse_recipe", "read_recipe", "shipped_recipes"]
