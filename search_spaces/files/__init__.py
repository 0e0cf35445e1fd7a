"""Studies in YAML: read, checked and written."""
