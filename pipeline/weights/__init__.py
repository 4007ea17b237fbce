"""Weights on disk: model folders of our own, published formats read, feature extractors, decoders."""
