"""Ready-made providers, one module for each vendor.

Each class is given the vendor's own client object, which the application makes, and translates
between it and the contract. No module imports a vendor's package or another one of these modules.
To write a provider for another vendor, copy the most similar module.
"""
