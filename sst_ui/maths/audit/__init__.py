"""What was done to a matrix, from the matrix before and after."""
