"""Adversarial training of one site's share of a round: one loop, its losses, its checkpoints and its sample sheets."""
