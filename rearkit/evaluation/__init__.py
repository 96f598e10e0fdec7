"""Scores of samples: feature extraction, fidelity, reconstruction, copies, and checks of the samples."""
