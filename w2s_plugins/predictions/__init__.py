"""What a model says of images without labels: ``python -m w2s_plugins.predictions MODEL DIR --output labels.csv``."""
