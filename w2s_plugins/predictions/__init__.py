"""What a model says of images without labels, ``python -m w2s_plugins.predictions MODEL DIR --output labels.csv``, and
its features of them, ``--features features.npz``.
"""
