"""A package, so that fixtures of this scope end with its last test: the page is closed, and what it
was told to keep short is as long as ever for the tests that follow."""
