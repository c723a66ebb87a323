"""Data sets that come with the package; import the module you need."""
