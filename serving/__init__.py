"""Serve what an MLflow registry alias points at."""
