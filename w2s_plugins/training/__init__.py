"""How a run is made, from its flags, and how it goes."""
