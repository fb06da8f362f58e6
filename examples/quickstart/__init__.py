"""The smallest program that has it all."""
