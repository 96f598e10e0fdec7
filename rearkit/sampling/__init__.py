"""The stage ``sample``."""
