"""What generated tiles are worth: distances between sets of features, and what a classifier learns from them."""
