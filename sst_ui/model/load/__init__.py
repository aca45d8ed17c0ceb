"""From an id or a folder to weights, tokenizer and template."""
