"""Image and token shards."""
