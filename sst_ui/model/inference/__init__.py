"""Forward passes: generation, log-probabilities, residuals, gradients."""
