"""Protocols translate between the wire and the service; they never touch a model."""
