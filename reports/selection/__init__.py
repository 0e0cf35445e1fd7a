"""The choice of a config, its confirmation on fresh repeats, and gates."""
