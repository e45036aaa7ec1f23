"""Gradient descent on the gates: the learner, its schedule and budget, and the blocks of groups that fit memory."""
