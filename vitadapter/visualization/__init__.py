"""Pictures and tables of training runs, predictions and evaluations."""
