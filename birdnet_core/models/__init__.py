"""The networks, one a file. Each takes (input_shape, n_classes) and its options as keywords."""
