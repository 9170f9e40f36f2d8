"""What of a student is trained, and how it starts."""
