"""Maintainers' measurements, the gallery and the schemas."""
