"""What a run leaves behind: the files of its folder, trial records, metric names, usage."""
