"""Autoregressive backbones."""
