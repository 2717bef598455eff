"""Grafana: dashboards that are made by code, and what provisions them."""
