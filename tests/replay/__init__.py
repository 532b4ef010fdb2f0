"""Every method on a fixed tiny input, step by step, against committed records: ``python -m tests.replay``."""
