"""Views of a sweep: live, status, TensorBoard, Optuna's dashboard, a dry run."""
