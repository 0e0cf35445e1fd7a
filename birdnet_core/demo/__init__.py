"""Recordings of invented birds, for the demo and the tests."""
