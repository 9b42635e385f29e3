"""Models of vitadapter."""
