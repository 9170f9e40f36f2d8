"""The Hugging Face Hub: what is pulled, exported and pushed."""
