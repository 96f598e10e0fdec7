"""Fitting tokenizers: their own loss, and what published ones add to it, a discriminator and a perceptual distance."""
