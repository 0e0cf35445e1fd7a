"""The engine of a sweep: from a study to finished trials on Ray. Start reading at `launch.sweep`."""
