"""The letters that glyphnet is pretrained on: drawn from fonts, rendered differently each time."""
