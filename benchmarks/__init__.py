"""What Nitro costs beside what people would write by hand: `make bench`."""
