"""Running a config: overrides, training, evaluation and prediction."""
