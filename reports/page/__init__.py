"""The report: page, text, JSON and tables."""
