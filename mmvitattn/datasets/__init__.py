"""The embedded data set, and the layouts of public ones."""
