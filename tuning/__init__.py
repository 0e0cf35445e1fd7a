"""How a study is run: one Ray trainable, the searcher, the driver's journal, and the command line."""
