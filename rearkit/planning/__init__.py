"""What a recipe will need, found without data, weights or an accelerator."""
