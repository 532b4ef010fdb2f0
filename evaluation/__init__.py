"""What scores: distances, rankings, protocols and audits. It imports `core` and nothing else of the suite."""
