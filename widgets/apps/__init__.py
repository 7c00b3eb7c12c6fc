"""The apps: one file each, a desk (what it does, knowing no host) and a view (what Panel draws)."""
