"""What a recipe can say: its tables, how they are read from TOML, and how they are checked."""
