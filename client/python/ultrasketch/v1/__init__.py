"""The messages of proto/ultrasketch/v1 and their stubs, generated when the package is built."""
