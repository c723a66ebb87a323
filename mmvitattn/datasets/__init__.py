"""The embedded data set, the layouts of public ones, and the import of own data."""
