"""What a model says of images without labels: ``python -m w2s_plugins.predict MODEL DIR --output labels.csv``."""
