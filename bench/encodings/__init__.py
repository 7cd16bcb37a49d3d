"""What the update encodings cost and buy, on the updates of a small GAN federation; see `__main__`."""
