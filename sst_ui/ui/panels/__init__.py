"""How each part of the page looks."""
