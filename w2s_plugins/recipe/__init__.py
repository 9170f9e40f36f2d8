"""What surrounds the training step of the script: evaluation, saving, stopping, closing."""
