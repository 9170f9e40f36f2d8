"""Teacher, ceiling and student, one after the other."""
