"""Regularizers that tie the backbone's hidden states to the tokenizer."""
