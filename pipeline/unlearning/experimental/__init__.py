"""What is measured and kept, but not recommended."""
