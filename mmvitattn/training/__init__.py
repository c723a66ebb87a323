"""What a training needs beyond MMEngine."""
