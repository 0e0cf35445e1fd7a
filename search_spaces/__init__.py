"""What to try: ablation designs and Optuna search spaces, as pure functions of a trial or a base config."""
