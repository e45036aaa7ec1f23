"""Discrete masks: scoring, search, discretisation of learned gates, polish, baselines and attribution scores."""
