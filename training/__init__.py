"""How the shipped model and adapters were made: not part of the product."""
