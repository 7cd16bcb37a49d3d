"""Tiles of tissue: the only package that opens patient data. Pillow and numpy, no torch.

Nothing that leaves this package as text names a file, a slide, a patient or a folder of the site: sentences hold counts,
class names and reasons (the trainer's notes and errors travel to the aggregator).
"""
