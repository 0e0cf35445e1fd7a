"""Statistics of trials: frames in, frames out."""
