"""The border of a command: its flags are filled in and checked by what timm, torch, plugins and runs know."""
