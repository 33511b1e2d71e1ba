"""TFDS builders that this package carries; importing a module here registers its builder."""
