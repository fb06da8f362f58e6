"""The project under test; its handlers write their effects where the checker counts them."""
