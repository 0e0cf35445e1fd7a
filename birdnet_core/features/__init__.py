"""The features, one a file. Each takes the clip format and turns waveforms into features."""
