"""Parts for any backbone: lean layers for training, packed ones and cached attention for decoding."""
