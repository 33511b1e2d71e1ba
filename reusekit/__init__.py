"""reusekit: cut, reuse and fine-tune pretrained Keras 3 models."""
