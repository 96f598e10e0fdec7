"""The tables of a recipe: their settings, how they are read from TOML, and how they are checked."""
