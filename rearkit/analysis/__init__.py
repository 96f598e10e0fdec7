"""What trained runs are like: diagnosis of one, tables and differences of many."""
