"""A trained model for those who have neither this package nor torch: a file of ONNX."""
