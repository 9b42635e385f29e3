"""The sample data set, made without any download; shipped as ``vitadapter.sample_data``."""
