"""A trained model over HTTP: a page to sample from, and the interface that it uses."""
