"""Views of a sweep for people and other programs: live, status, TensorBoard, Optuna's dashboard, a dry run."""
