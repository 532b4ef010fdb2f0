"""The entry points: the stages that dvc.yaml calls, each usable alone as `python -m pipeline.NAME`."""
