"""What only the maintainers of the series run: its HTML edition, its figures, its address in all files."""
