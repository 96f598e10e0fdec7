"""Layers for any backbone: memory-saving ones for training, packed ones and cached attention for decoding."""
