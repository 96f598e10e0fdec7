"""The built-in components, registered in the same way as a plugin's."""
