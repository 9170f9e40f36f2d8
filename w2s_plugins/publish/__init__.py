"""A trained model for those who have neither this package nor, perhaps, torch: a file of ONNX, a Space."""
