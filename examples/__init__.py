"""Programs that use Nitro; run from the folder above, each with a README."""
