"""Trained models: their folder, predictions, calibration, the test, export."""
