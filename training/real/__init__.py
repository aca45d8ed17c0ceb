"""A real model to try things on, and what is trained from it: SmolLM2-135M-Instruct.

It hardly refuses by itself. It is tuned to refuse as other models are, by examples of refusals and
of its own answers; nothing here knows of directions or edits.
"""
