"""Data: prompts, instruction data, task data, calibration text."""
