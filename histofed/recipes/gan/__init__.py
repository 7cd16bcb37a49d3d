"""The recipe `gan`: a class-conditional generator of tiles, trained against a discriminator (the paper's ACGAN)."""
