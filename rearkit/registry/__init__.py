"""Components by kind and name, and the discovery of plugins."""
