"""Records -> pictures and pages."""
