"""Analysis of trained runs: diagnoses of one run, tables and differences of several."""
