"""Components by kind and name, and how plugins are found."""
