"""Local files and devices."""
