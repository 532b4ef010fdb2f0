"""The shared engine: knows no method and no dataset by name."""
