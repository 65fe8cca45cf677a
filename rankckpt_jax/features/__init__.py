"""Features: images and a backbone in, one array of features per checkpoint out."""
