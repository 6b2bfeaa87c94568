"""Bundled procedural tasks: rows, demonstrations and graders that need no download."""
