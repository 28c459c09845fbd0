"""The LUKS format, version 1, and the crypto engine that other formats with LUKS inside use too."""
