"""What a window knows: frozen data."""
