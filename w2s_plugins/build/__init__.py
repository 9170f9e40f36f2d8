"""The parts of a run, made from its flags."""
