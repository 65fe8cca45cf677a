"""A task becomes arrays of images: `tasks`, `preprocess`, `pipeline`."""
