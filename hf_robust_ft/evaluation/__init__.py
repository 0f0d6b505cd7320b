"""How robust a model is: protocols, checks, reports."""
