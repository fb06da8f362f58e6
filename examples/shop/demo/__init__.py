"""The demo: runs the shop with a real worker and checks each side effect."""
