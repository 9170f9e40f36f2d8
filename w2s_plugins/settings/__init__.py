"""Flags become typed settings, one frozen dataclass a concern: what follows, what excludes what, what timm knows."""
