"""The stage ``train``."""
