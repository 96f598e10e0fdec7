"""The stages ``tokenizer`` (fit or load) and ``tokens`` (write and check token shards)."""
