"""What all windows share: the engine, jobs, errors."""
