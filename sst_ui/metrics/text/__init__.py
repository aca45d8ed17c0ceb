"""What kind of answer a text is."""
