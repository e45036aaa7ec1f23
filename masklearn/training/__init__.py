"""Training: gradient descent on the gates of one block of groups after the other."""
