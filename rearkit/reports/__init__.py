"""Reports for people: the page of a run, the page of a comparison, diagnoses, charts."""
