"""YAML in, a recipe out: what to train, on what, how."""
