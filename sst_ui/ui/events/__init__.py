"""What each part of the page does."""
