"""The implementation against golden files of official implementations."""
