"""The vdi format."""
