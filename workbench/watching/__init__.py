"""What `workbench.watch` is made of: series of what was measured, probes, and the record."""
