"""Draft models for speculative decoding, trained on a model's own answers: `lonas-edge draft`."""
