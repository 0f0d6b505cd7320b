"""YAML recipes, which compose, and how they become arguments."""

from hf_robust_ft.recipes.parsing import (
    as_flags,
    build_parser,
    compose_recipes,
    parse_recipe,
    read_recipe,
    shipped_recipes,
)

__all__ = ["as_flags", "build_parser", "compose_recipes", "parse_recipe", "read_recipe", "shipped_recipes"]
