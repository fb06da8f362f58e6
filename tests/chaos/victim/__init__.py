"""The project that is shaken: its handlers write their effects where the checker counts them."""
