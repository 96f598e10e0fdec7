"""The stage ``evaluate``, and the report."""
