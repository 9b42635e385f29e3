"""What `make_sample_dataset.py` is made of."""
