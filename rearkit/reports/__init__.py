"""What people read: the page of a run, the page of a comparison, diagnoses, charts."""
