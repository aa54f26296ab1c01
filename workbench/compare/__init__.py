"""Mechanisms of one kind against each other on one probe, at equal budgets; whoever is registered takes part."""
