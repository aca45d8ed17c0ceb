"""How the demo model was made, and what makes it again: text, training and its table."""
