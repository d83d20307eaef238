"""Ready-made providers, one module for each vendor, which take the vendor's own client."""
