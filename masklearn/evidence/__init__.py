"""Evidence that a mask is a circuit: hypothesis tests, controls, stability, completeness and transfer."""
