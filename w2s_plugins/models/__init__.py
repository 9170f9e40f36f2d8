"""Small networks, registered with timm."""
