"""The mathematics of merging two LoRA adapters."""
