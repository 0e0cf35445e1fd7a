"""The choice of a config, its confirmation on fresh seeds, and gates."""
