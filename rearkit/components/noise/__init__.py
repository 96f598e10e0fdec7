"""Context-noise schedules (article: "noisy context regularization")."""
