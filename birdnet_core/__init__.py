"""What one training run is: recordings, features, model, loss, training, metrics. No Ray, no Optuna."""
