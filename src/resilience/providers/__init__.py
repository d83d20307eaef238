"""Ready-made providers, one module for each vendor.

Each class is given the vendor's own client object, which the application makes, and translates
between it and the contract. Nothing of a vendor is imported, and no module imports another one: to
write a provider for another vendor, copy the nearest.
"""
