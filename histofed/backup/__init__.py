"""One file that holds the state of a daemon at one moment, and the way back from it."""
