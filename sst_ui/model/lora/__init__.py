"""LoRA adapter files, read and written."""
