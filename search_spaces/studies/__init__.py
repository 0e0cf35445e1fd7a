"""The built-in studies, one a file. The first line of each docstring is the question."""
