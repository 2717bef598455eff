"""Transforms turn a payload into a `Batch`, or say which row and column is wrong."""
