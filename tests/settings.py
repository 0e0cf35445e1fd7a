"""Settings that several test files share."""

# Features of 16 x 24 and one-second clips: a test trains in a second.
SMALL = {
    "data.window_s": 1.0,
    "features.n_mfcc": 16,
    "features.n_mels": 32,
    "features.n_fft": 1024,
    "features.hop": 900,
    "features.n_frames": 24,
    "training.epochs": 2,
    "training.batch_size": 8,
    "optim.warmup_epochs": 1,
}
