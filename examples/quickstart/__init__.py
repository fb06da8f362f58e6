"""The smallest program with an inline and an offloaded handler."""
