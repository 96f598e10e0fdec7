"""The built-in components, registered as a third party's are."""
