"""The losses, one a file. Each takes the training clips per class and its options as keywords."""
